"""A nameless file on disk that holds layers: written once in order, then read past the page cache.

It has no name from the start, so the system takes it back when the process ends, whatever ended it. Never imports
torch: buffers are memoryviews.
"""

import errno
import fcntl
import mmap
import os
import tempfile
import weakref
from pathlib import Path

import psutil

from distllm.engine.byte_size import byte_size
from distllm.engine.offload.errors import OffloadError

PAGE_BYTES = 4096
"""What offsets, lengths and addresses are multiples of: no disk reads and writes in larger sectors."""
DEFAULT_DIRECTORY = Path("/var/tmp")  # a disk by convention, where /tmp may be memory

_BOUNCE_BYTES = 8 << 20
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def pages(num_bytes: int) -> int:
    """`num_bytes` rounded up to whole pages."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


class DiskFile:
    """Owns the file. `read_into` may be called from several threads at once, `append` from one."""

    def __init__(self, directory: Path) -> None:
        """Raises OffloadError where `directory` cannot hold files, or holds them in memory."""
        self.directory = directory
        if _file_system(directory) in _IN_MEMORY:
            raise OffloadError(f"{directory} lies in memory, not on a disk: give --offload-dir a folder on a disk")
        try:
            with tempfile.TemporaryFile(dir=directory) as file:
                self._fd = os.dup(file.fileno())
        except OSError as error:
            raise OffloadError(
                f"{directory} cannot hold the layers ({error.strerror}): give --offload-dir a folder to write to"
            ) from None
        self.close = weakref.finalize(self, os.close, self._fd)
        self.is_direct = _bypass_page_cache(self._fd)
        self.num_bytes = 0
        self._bounce = mmap.mmap(-1, _BOUNCE_BYTES)

    @property
    def path(self) -> Path:
        """By which this process can open the file again."""
        return Path(f"/proc/self/fd/{self._fd}")

    def append(self, content: memoryview) -> int:
        """Write `content`, of bytes, filled up with zeros to a whole page. Returns where it begins."""
        begin = self.num_bytes
        for start in range(0, len(content), _BOUNCE_BYTES):
            piece = content[start : start + _BOUNCE_BYTES]
            length = pages(len(piece))
            self._bounce[: len(piece)] = piece
            self._bounce[len(piece) : length] = bytes(length - len(piece))
            self._write(memoryview(self._bounce)[:length])
        return begin

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset` on; both are of whole pages. Raises OSError where the disk does."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], offset + done)
            if count == 0:
                raise OSError(errno.EIO, f"the offloaded layers end at byte {offset + done}")
            done += count
        if not self.is_direct:
            os.posix_fadvise(self._fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)

    def _write(self, piece: memoryview) -> None:
        try:
            while piece:
                count = os.pwrite(self._fd, piece, self.num_bytes)
                self.num_bytes += count
                piece = piece[count:]
            if not self.is_direct:
                os.fdatasync(self._fd)  # dirty pages would count as this process's memory
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            free = psutil.disk_usage(str(self.directory)).free
            raise OffloadError(
                f"{self.directory} took {byte_size(self.num_bytes)} of the layers, then {error.strerror} "
                f"({byte_size(free)} are free): give --offload-dir a folder with more room"
            ) from None


def _bypass_page_cache(fd: int) -> bool:
    """Switch to O_DIRECT; False where the file system has none."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True


def _file_system(directory: Path) -> str:
    """The type of the file system that holds `directory`; "" where that is not to be found out."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    place = directory.resolve()
    return next((mounts[folder] for folder in (place, *place.parents) if folder in mounts), "")
