"""How fast a disk reads from beginning to end, past the page cache. Never imports torch."""

import itertools
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from distllm.engine.offload.disk_file import DiskFile

_BLOCK_BYTES = 16 << 20
_BUFFER_BYTES = 256 << 20  # larger than what a processor caches, as layers are
_WAYS = ((1 << 20, 1), (1 << 20, 4), (_BLOCK_BYTES, 1), (_BLOCK_BYTES, 4))
"""Bytes of a read and how many are under way at once."""
_ROUNDS = 3  # a virtual disk may be faster once its host has the file in memory


def measure_disk_rate(directory: Path, num_bytes: int) -> float:
    """Bytes a second by the fastest of a few ways, over a file of `num_bytes`, of whole blocks of 16 MiB.

    Raises OffloadError as DiskFile does.
    """
    file = DiskFile(directory)
    try:
        block = memoryview(os.urandom(_BLOCK_BYTES))
        for _ in range(num_bytes // _BLOCK_BYTES):
            file.append(block)
        buffer = mmap.mmap(-1, min(_BUFFER_BYTES, num_bytes))
        buffer[:] = bytes(len(buffer))  # so that no read waits for the memory
        return max(_read_all(file, buffer, *way) for way in _WAYS * _ROUNDS)
    finally:
        file.close()


def _read_all(file: DiskFile, buffer: mmap.mmap, piece_bytes: int, num_threads: int) -> float:
    offsets = itertools.takewhile(lambda offset: offset < file.num_bytes, itertools.count(0, piece_bytes))
    threads = [
        threading.Thread(target=_read_pieces, args=(file, buffer, piece_bytes, offsets)) for _ in range(num_threads)
    ]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return file.num_bytes / (time.perf_counter() - began_s)


def _read_pieces(file: DiskFile, buffer: mmap.mmap, piece_bytes: int, offsets: Iterator[int]) -> None:
    view = memoryview(buffer)
    for offset in offsets:
        place = offset % len(view)
        file.read_into(view[place : place + piece_bytes], offset)
