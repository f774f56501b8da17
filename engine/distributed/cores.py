"""Which cores a rank runs on, so that ranks do not get in each other's way."""

import os
import sys
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def share_cores(size: int) -> list[frozenset[int]]:
    """The cores that this process may run on, divided among ranks; hyperthreads of a core stay with one rank.

    Empty sets where there are fewer cores than ranks, or where the system does not bind: then nothing is bound.
    """
    if sys.platform != "linux":
        return [frozenset()] * size
    cores = sorted(os.sched_getaffinity(0), key=_place)
    if len(cores) < size:
        return [frozenset()] * size
    return [frozenset(cores[len(cores) * rank // size : len(cores) * (rank + 1) // size]) for rank in range(size)]


def bind(cores: frozenset[int]) -> None:
    """Keep this process, and the threads that it will start, on `cores`."""
    if cores:
        os.sched_setaffinity(0, cores)


def _place(cpu: int) -> tuple[int, int, int]:
    """Socket, core and number of a logical CPU."""
    return (_read(cpu, "physical_package_id"), _read(cpu, "core_id"), cpu)


def _read(cpu: int, name: str) -> int:
    try:
        return int((_TOPOLOGY / f"cpu{cpu}" / "topology" / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
