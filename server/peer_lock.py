"""One peer a state directory: two that have one certificate would take each other's place for ever."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from distllm.engine.pipeline.security.state_dir import ClusterStateError, make_private_dir

_FILE_NAME = "running.lock"


@contextlib.contextmanager
def held_alone(directory: Path) -> Iterator[None]:
    """Keep other peers from a state directory until the block is left, or until the program ends that this process
    becomes in the block. Raises ClusterStateError where one runs, or OSError.
    """
    descriptor = os.open(make_private_dir(directory) / _FILE_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, directory)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ClusterStateError(
            f"another peer runs here with --state {directory}: give this one a folder of its own with --state, "
            "or end that one"
        ) from None
