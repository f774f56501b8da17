"""Where a cluster's coordinator listens, as its server leaves it in the state directory for `distllm token`."""

from pathlib import Path

import msgspec

from distllm.engine.durable import write_private
from distllm.engine.pipeline.security.state_dir import make_private_dir
from distllm.server.cluster_config import CoordinatorSection

_FILE_NAME = "address.json"
_DEFAULT = CoordinatorSection()


class CoordinatorAddress(msgspec.Struct, frozen=True):
    """`host` may be one that stands for all of this machine's addresses, such as 0.0.0.0."""

    host: str = _DEFAULT.host
    port: int = _DEFAULT.port

    def write(self, state_dir: Path) -> None:
        """Raises ClusterStateError or OSError."""
        write_private(make_private_dir(state_dir) / _FILE_NAME, msgspec.json.encode(self))

    @classmethod
    def read(cls, state_dir: Path) -> "CoordinatorAddress":
        """The default one where no coordinator has run, or what it left cannot be read."""
        try:
            return msgspec.json.decode((state_dir / _FILE_NAME).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError):
            return cls()
