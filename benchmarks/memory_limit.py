"""A limit on the memory of a process and its children: a cgroup of version 2 or 1, whichever this system has."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_LIMIT_FILES = {_ROOT: "memory.max", _ROOT / "memory": "memory.limit_in_bytes"}
_PEAK_FILES = ("memory.peak", "memory.max_usage_in_bytes")


class NoCgroupError(Exception):
    """This process may not make a cgroup that limits memory."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A cgroup of its own."""

    folder: Path

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command, which joins the cgroup before it begins."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *command]

    def peak_bytes(self) -> int | None:
        """The most that was in use at once, page cache included; None where the kernel does not tell."""
        for name in _PEAK_FILES:
            if (self.folder / name).exists():
                return int((self.folder / name).read_text())
        return None


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[MemoryLimit]:
    """A cgroup with this limit, gone afterwards with what still runs in it. Raises NoCgroupError."""
    folder = _make_group(num_bytes)
    try:
        yield MemoryLimit(folder)
    finally:
        _remove_group(folder)


def _make_group(num_bytes: int) -> Path:
    for root, limit_file in _LIMIT_FILES.items():
        folder = root / f"distllm-bench-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / limit_file).exists():  # the kernel's, where it limits memory here
            (folder / limit_file).write_text(str(num_bytes))
            return folder
        folder.rmdir()
    raise NoCgroupError("a memory limit needs root and cgroups with the memory controller")


def _remove_group(folder: Path) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        members = (folder / "cgroup.procs").read_text().split()
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if not members:
            break
        time.sleep(0.05)
    folder.rmdir()
