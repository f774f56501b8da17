"""Where a coordinator and a peer keep what must outlive them, and how private that has to be."""

import os
import stat
from pathlib import Path


class ClusterStateError(Exception):
    """What is kept on disk cannot be used; the message names the path, what is wrong with it and the remedy."""


def default_cluster_dir() -> Path:
    """The coordinator's: its authority and its tokens. Raises ClusterStateError."""
    return _state_home() / "cluster"


def default_peer_dir() -> Path:
    """A peer's: its identity. Raises ClusterStateError."""
    return _state_home() / "peer"


def make_private_dir(directory: Path) -> Path:
    """The directory, made for its owner alone if there is none. Raises ClusterStateError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except OSError as error:
        raise ClusterStateError(f"{directory} cannot be made: {error.strerror}; name another directory") from None
    if mode & stat.S_IWOTH:
        raise ClusterStateError(f"{directory} may be written by any user: chmod 700 {directory}")
    return directory


def read_private(path: Path) -> bytes:
    """A file that holds a key. Raises FileNotFoundError, or ClusterStateError where others may read it.

    The group's rights are left to the owner: a mounted volume may widen them.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ClusterStateError(f"{path} cannot be read: {error.strerror}") from None
    if mode & stat.S_IRWXO:
        raise ClusterStateError(
            f"{path} holds a key and any user may read it: chmod 600 {path}, and make a new one if somebody did"
        )
    return content


def _state_home() -> Path:
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        raise ClusterStateError("this user has no home directory: let XDG_STATE_HOME name one") from None
    return Path(base) / "distllm"
