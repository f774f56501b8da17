"""Whether the connections of a cluster are encrypted, as its coordinator and its peers remember it on disk."""

from pathlib import Path

import msgspec

from distllm.engine.durable import write_private
from distllm.engine.pipeline.security.state_dir import ClusterStateError, make_private_dir

_FILE_NAME = "network.json"


class _Network(msgspec.Struct, frozen=True):
    encryption: bool


def read_encryption(state_dir: Path) -> bool:
    """Of a coordinator's directory or a peer's; they are where that says nothing. Raises ClusterStateError."""
    path = state_dir / _FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Network).encryption
    except FileNotFoundError:
        return True
    except (OSError, msgspec.DecodeError) as error:
        raise ClusterStateError(f"{path} cannot be read: {error}; remove it, and start again") from None


def write_encryption(state_dir: Path, *, is_encrypted: bool) -> None:
    """Raises ClusterStateError or OSError."""
    write_private(make_private_dir(state_dir) / _FILE_NAME, msgspec.json.encode(_Network(is_encrypted)))
