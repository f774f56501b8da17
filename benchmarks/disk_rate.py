"""How fast a disk reads a file from its beginning to its end, past the page cache."""

import itertools
import mmap
import os
import tempfile
import threading
import time
from pathlib import Path

_FILE_BYTES = 2 << 30
_BUFFER_BYTES = 384 << 20
_PIECES = ((1 << 20, 1), (1 << 20, 4), (16 << 20, 1), (16 << 20, 4))
"""Bytes of a read and how many are under way at once."""
_ROUNDS = 2  # a disk that is served from another machine's memory is faster the second time


def sequential_rate(directory: Path) -> float:
    """Bytes a second by the fastest of a few ways; the directory must know O_DIRECT."""
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        block = os.urandom(16 << 20)
        for _ in range(_FILE_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
        fd = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
        try:
            return max(_read_all(fd, *pieces) for pieces in _PIECES * _ROUNDS)
        finally:
            os.close(fd)


def _read_all(fd: int, piece_bytes: int, num_threads: int) -> float:
    """Into memory larger than a processor's caches, as layers are."""
    memory = mmap.mmap(-1, _BUFFER_BYTES)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:] = bytes(_BUFFER_BYTES)
    offsets = itertools.count(0, piece_bytes)
    threads = [
        threading.Thread(target=_read_pieces, args=(fd, memory, piece_bytes, offsets)) for _ in range(num_threads)
    ]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _FILE_BYTES / (time.perf_counter() - began_s)


def _read_pieces(fd: int, memory: mmap.mmap, piece_bytes: int, offsets: "itertools.count[int]") -> None:
    view = memoryview(memory)
    while (offset := next(offsets)) < _FILE_BYTES:
        place = offset % (_BUFFER_BYTES - _BUFFER_BYTES % piece_bytes)
        done = os.preadv(fd, [view[place : place + piece_bytes]], offset)
        assert done == piece_bytes
