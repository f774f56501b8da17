"""Ways of reading a DiskFile at the disk's full rate. Never imports torch."""

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from distllm.engine.offload.disk_file import DiskFile

_PIECE_BYTES = 16 << 20
_NUM_THREADS = 4
"""Sixteen mebibytes four at a time: of 1 to 64 MiB and 1 to 8 threads within a tenth of the best, everywhere."""


class Reader(Protocol):
    """Reads whole pages of one file into memory."""

    name: str

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset` of the file on. Raises OSError."""

    def close(self) -> None:
        """Give up threads and files."""


class PlainReader:
    """The system's positioned reads, several at a time."""

    def __init__(self, file: DiskFile) -> None:
        self.name = "O_DIRECT" if file.is_direct else "buffered reads"
        self._file = file
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="offload-read")

    def read(self, buffer: memoryview, offset: int) -> None:
        starts = range(0, len(buffer), _PIECE_BYTES)
        pieces = [buffer[start : start + _PIECE_BYTES] for start in starts]
        for _ in self._threads.map(self._file.read_into, pieces, (offset + start for start in starts)):
            pass  # so that a failure of any is raised

    def close(self) -> None:
        self._threads.shutdown()
