"""A directory that appears whole or not at all: written under a hidden name beside its place, then renamed.

What a killed writer left is removed by the next one of the same output; that of a living one is not touched.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from distllm.engine.byte_size import byte_size
from distllm.engine.durable import locked, sync


@contextlib.contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """An empty directory that becomes `out` at the end of the block, unless that raises. All of it is on disk then.

    Raises FileExistsError or another OSError, in words, where `out` cannot be made.
    """
    out = out.resolve()
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks:
        partial = _begin(out, locks)
        try:
            yield partial
            for path in (*partial.rglob("*"), partial):
                sync(path)
            check_free(out)
            os.rename(partial, out)  # over an empty directory, if there is one
            sync(out.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def check_free(out: Path) -> None:
    """Raises FileExistsError where something is at `out` that a new directory cannot take the place of."""
    if out.is_dir() and not any(out.iterdir()) and not out.is_mount():
        return
    if out.is_mount():
        raise FileExistsError(f"{out} is where a disk is mounted; name a directory in it")
    if out.exists():
        raise FileExistsError(f"{out} exists and is not an empty directory; name another, or remove it")


def check_room(out: Path, num_bytes: int) -> None:
    """Raises OSError where the disk has no room for so many bytes at `out`."""
    existing = next(path for path in out.resolve().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OSError(f"{out} needs {byte_size(num_bytes)}, and its disk has {byte_size(free)} free")


def _begin(out: Path, locks: contextlib.ExitStack) -> Path:
    """A new directory that is locked for as long as this process writes to it."""
    prefix = f".{out.name}.partial-"
    with locked(out.parent):
        for left in [path for path in out.parent.iterdir() if path.name.startswith(prefix)]:
            with contextlib.suppress(BlockingIOError), locked(left, fcntl.LOCK_NB):
                shutil.rmtree(left, ignore_errors=True)
        partial = out.parent / f"{prefix}{secrets.token_hex(4)}"
        partial.mkdir()
        locks.enter_context(locked(partial))
    return partial
