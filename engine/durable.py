"""Files and directories on which several processes agree: whole or absent, also after a crash."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_OWNER_ONLY = 0o600


@contextlib.contextmanager
def locked(directory: Path, flags: int = 0) -> Iterator[None]:
    """Hold the lock of a directory, which ends with the process. Raises BlockingIOError with LOCK_NB."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes) -> None:
    """Put a file that its owner alone may read in the place of what is there. It is on disk when this returns."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)
