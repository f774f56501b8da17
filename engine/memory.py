"""Measures the memory that could be taken now on this machine, within the process's cgroup. Never imports torch."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers its parameters
_MOST_KEPT_BYTES = 32 << 20  # what glibc's thresholds come to by themselves in a process that frees large blocks


@dataclass(frozen=True, slots=True)
class CgroupVersion:
    """How one of the kernel's two interfaces names things.

    `controller` is what /proc/self/cgroup calls the hierarchy that limits memory, `folder` where it is below the
    root, `reclaimable` the figures of memory.stat that the kernel counts as usage but gives back, such as the pages
    of a mapped checkpoint.
    """

    controller: str
    folder: str
    limit: str
    usage: str
    reclaimable: tuple[str, ...]


VERSION_1 = CgroupVersion(
    controller="memory",
    folder="memory",
    limit="memory.limit_in_bytes",
    usage="memory.usage_in_bytes",
    reclaimable=("total_inactive_file", "total_active_file"),
)
VERSION_2 = CgroupVersion(
    controller="",
    folder="",
    limit="memory.max",
    usage="memory.current",
    reclaimable=("inactive_file", "active_file"),
)


def measure_free_host_bytes() -> int:
    """What is free or could be freed without swapping, under the tightest limit that holds."""
    headrooms = [
        headroom
        for version in (VERSION_1, VERSION_2)
        for headroom in cgroup_headrooms(_CGROUP_ROOT / version.folder, _own_cgroup(version), version)
    ]
    return min([int(psutil.virtual_memory().available), *headrooms])


@contextmanager
def giving_back_freed_memory() -> Iterator[None]:
    """While it holds, large blocks go back to the system when they are freed; at its end, so does what else can.

    glibc would keep blocks of up to 32 MiB for later, such as weights that were moved elsewhere: some hundred
    megabytes, more in one start than in another. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_THRESHOLD, _MOST_KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * _MOST_KEPT_BYTES)
        library.malloc_trim(0)


def cgroup_headrooms(root: Path, own: str, version: CgroupVersion = VERSION_2) -> list[int]:
    """Bytes left under each memory limit that holds for the cgroup, its own and its parents'."""
    group = root / own
    groups = [group, *group.parents[: len(Path(own).parts)]]
    headrooms = []
    for directory in groups:
        limit, usage = _read_int(directory / version.limit), _read_int(directory / version.usage)
        if limit is not None and usage is not None:
            headrooms.append(max(0, limit - usage + _reclaimable(directory, version)))
    return headrooms


def _own_cgroup(version: CgroupVersion) -> str:
    """This process's path below the root of its memory controller's cgroups; "" where there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if version.controller in controllers.split(","):
            return path.strip("/")
    return ""


def _reclaimable(directory: Path, version: CgroupVersion) -> int:
    """Page cache that counts as usage."""
    try:
        lines = (directory / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    figures = dict(line.split(" ", 1) for line in lines if " " in line)
    return sum(int(figures.get(name, "0")) for name in version.reclaimable)


def _read_int(path: Path) -> int | None:
    """The number in a file; None where there is no such file or it says `max`."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
