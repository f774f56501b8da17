"""Measures the memory that could be taken now on this machine, within the process's cgroup. Never imports torch."""

from pathlib import Path

import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def measure_free_host_bytes() -> int:
    """What is free or could be freed without swapping, under the tightest limit that holds."""
    return min([int(psutil.virtual_memory().available), *cgroup_headrooms(_CGROUP_ROOT, _own_cgroup())])


def _own_cgroup() -> str:
    """This process's path below the (version 2) cgroup root; "" where there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")


def cgroup_headrooms(root: Path, own: str) -> list[int]:
    """Bytes left under each memory limit that holds for the cgroup, its own and its parents'."""
    group = root / own
    groups = [group, *group.parents[: len(Path(own).parts)]]
    headrooms = []
    for directory in groups:
        limit, usage = _read_int(directory / "memory.max"), _read_int(directory / "memory.current")
        if limit is not None and usage is not None:
            headrooms.append(max(0, limit - usage + _reclaimable(directory)))
    return headrooms


def _reclaimable(directory: Path) -> int:
    """Page cache that the kernel counts as usage but gives back, such as a mapped checkpoint's."""
    try:
        lines = (directory / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    figures = dict(line.split(" ", 1) for line in lines if " " in line)
    return sum(int(figures.get(name, "0")) for name in ("inactive_file", "active_file"))


def _read_int(path: Path) -> int | None:
    """The number in a file; None where there is no such file or it says `max`."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
