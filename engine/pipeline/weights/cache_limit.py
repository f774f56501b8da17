"""Keeps a cache of weights within a limit: checkpoints that have not been used for longest are removed first.

DIR/<fingerprint>/in-use     locked by every process that serves this checkpoint; its time: when one last began to
"""

import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distllm.engine.byte_size import byte_size

logger = logging.getLogger("distllm.pipeline")

_LOCK_NAME = "in-use"
_REMOVED_PREFIX = ".removed-"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class CacheLimit:
    """What this process has in use is safe from all others. `max_bytes` None: nothing is removed."""

    def __init__(self, directory: Path, max_bytes: int | None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._in_use: Path | None = None
        self._lock: int | None = None

    def use(self, path: Path) -> None:
        """From now on a directory of the cache is in use, and no other. Raises OSError."""
        if path == self._in_use:
            return
        lock = _take(path)
        self.close()
        self._in_use, self._lock = path, lock

    def close(self) -> None:
        """Nothing is in use any more."""
        if self._lock is not None:
            os.close(self._lock)
        self._in_use = self._lock = None

    def make_room(self, num_bytes: int) -> None:
        """For so many bytes more, as far as what nobody uses takes them. Raises OSError."""
        if self._max_bytes is None:
            return
        for unfinished in self._directory.glob(f"{_REMOVED_PREFIX}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        found = [path for path in self._directory.iterdir() if _FINGERPRINT.fullmatch(path.name)]  # nothing else
        paths = sorted(found, key=_used_s)
        total_bytes = sum(map(_num_bytes, paths)) + num_bytes
        for path in paths:
            if total_bytes <= self._max_bytes:
                return
            if path != self._in_use:
                total_bytes -= self._remove(path)
        if total_bytes > self._max_bytes:
            logger.warning(
                "weights in use take %s of %s, more than --cache-limit allows: %s",
                byte_size(total_bytes),
                self._directory,
                byte_size(self._max_bytes),
            )

    def _remove(self, path: Path) -> int:
        """How many bytes that gave back; none where another process uses them."""
        num_bytes = _num_bytes(path)
        with _lock_of_nobody(path) as is_free:
            if not is_free:
                return 0
            removed = self._directory / f"{_REMOVED_PREFIX}{secrets.token_hex(8)}"
            path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
        logger.info("removed %s of weights that were not used for longest: %s", byte_size(num_bytes), path.name)
        return num_bytes


def _take(path: Path) -> int:
    """A lock that lasts until it is closed, of a directory that is there."""
    while True:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # it was removed this moment
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock)
        try:
            if os.path.samestat(os.fstat(lock), (path / _LOCK_NAME).stat()):
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)


@contextmanager
def _lock_of_nobody(path: Path) -> Iterator[bool]:
    """Whether no process uses a directory; none begins to meanwhile."""
    lock = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def _used_s(path: Path) -> float:
    lock = path / _LOCK_NAME
    return (lock if lock.exists() else path).stat().st_mtime


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
