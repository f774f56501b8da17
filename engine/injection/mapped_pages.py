"""Lets go of the pages of a mapped checkpoint that have been read, so that they do not count as this process's.

Only memory that a file stands behind is touched: its content comes back from the file if it is read again.
"""

import bisect
import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor

_MADV_DONTNEED = 4


class MappedPages:
    """The files that are mapped at the moment it is made; none where the system does not tell."""

    def __init__(self) -> None:
        self._ranges = _file_ranges() if sys.platform == "linux" else []
        self._starts = [start for start, _ in self._ranges]

    def forget(self, tensor: Tensor) -> None:
        """Drop the pages that lie wholly between the first and the last element of a tensor in host memory."""
        if not self._ranges or tensor.is_meta or tensor.device.type != "cpu" or not tensor.numel():
            return
        first = tensor.data_ptr()
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        last = first + extent * tensor.element_size()
        place = bisect.bisect_right(self._starts, first) - 1
        if place < 0 or last > self._ranges[place][1]:
            return
        start, stop = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)


def _file_ranges() -> list[tuple[int, int]]:
    """[start, stop) of every mapping that is read from a file, in order."""
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _mode, _offset, _device, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, stop = (int(address, 16) for address in addresses.split("-"))
            ranges.append((start, stop))
    return sorted(ranges)
