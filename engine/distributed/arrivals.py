"""Which rank waits for which: a counter a rank in shared memory, from which a rank that hangs is told.

A counter is odd while its rank waits for the others, and grows by two with each wait. All ranks wait equally often,
so one that is behind while another waits is the one that is waited for. All of them wait for no more than a moment.
A rank that waits for its disk keeps the others waiting and does not hang: it shows that by pulses.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from distllm.engine.distributed.shared_bytes import map_bytes
from distllm.engine.kernels.library import KernelLibrary, load_library

CHECK_S = 0.1
"""How often a rank looks after the others."""
_STRIDE = 16
"""Counters apart, so that each has cache lines of its own."""


class Arrivals:
    """The counters of all ranks, and this rank's own."""

    def __init__(self, descriptor: int, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        counters = map_bytes(descriptor, (2 * size + 1) * _STRIDE * 8).view(np.int64)[::_STRIDE]
        self._counters, self._pulses, self._beat = counters[:size], counters[size : 2 * size], counters[2 * size :]
        self._address = self._counters.ctypes.data
        library = load_library("portable")
        self._functions = library.functions if isinstance(library, KernelLibrary) else None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it holds, this rank waits for the others."""
        self._counters[self.rank] += 1
        try:
            yield
        finally:
            self._counters[self.rank] += 1

    def meet(self) -> None:
        """Return when all ranks wait, leaving the core to others meanwhile: they may share it with this rank."""
        if self._functions is not None:
            self._functions.distllm_meet(self._address, _STRIDE, self.rank, self.size)
            return
        own = self._counters[self.rank]
        while self._counters.min() < own:
            os.sched_yield()

    def pulse(self) -> None:
        """Show that this rank goes on, though it is not where the others wait for it."""
        self._pulses[self.rank] += 1

    def beat(self) -> None:
        """Show that the first rank's process runs, also while no rank waits for it."""
        self._beat += 1

    def note(self, rank: int, count: int, num_pulses: int) -> None:
        """Take over what another rank says of itself, whose memory this one does not share."""
        self._counters[rank], self._pulses[rank] = count, num_pulses

    def report(self) -> list[tuple[int, int]]:
        """What every rank would say of itself, for `note`."""
        return [(int(count), int(pulses)) for count, pulses in zip(self._counters, self._pulses, strict=True)]

    @property
    def num_beats(self) -> int:
        return int(self._beat[0])

    def snapshot(self) -> tuple[int, ...]:
        return tuple(int(count) for count in self._counters)

    def pulses(self) -> tuple[int, ...]:
        """How many each rank has shown."""
        return tuple(int(count) for count in self._pulses)


def is_waited(counts: tuple[int, ...]) -> bool:
    """Whether any rank waits for others."""
    return max(counts) % 2 == 1


def laggards(counts: tuple[int, ...]) -> list[int]:
    """The ranks that one which waits is waiting for; none where nobody waits."""
    return [rank for rank, count in enumerate(counts) if is_waited(counts) and count < max(counts)]


class Stillness:
    """For how long a value has been the same."""

    def __init__(self) -> None:
        self._last: object = None
        self._since_s = time.monotonic()

    def seconds(self, value: object) -> float:
        """To be called every now and then with the value of the moment."""
        now = time.monotonic()
        if value != self._last:
            self._last, self._since_s = value, now
        return now - self._since_s


class HangWatch:
    """Notices ranks that are waited for and have shown no sign for `timeout_s`."""

    def __init__(self, arrivals: Arrivals, timeout_s: float) -> None:
        self._arrivals = arrivals
        self._timeout_s = timeout_s
        self._stillness = [Stillness() for _ in range(arrivals.size)]

    def laggards(self) -> list[int] | None:
        """The ranks that hang, none of them where that is not to be told; None where no rank does.

        To be called every now and then.
        """
        counts = self._arrivals.snapshot()
        behind = laggards(counts)
        signs = zip(counts, self._arrivals.pulses(), strict=True)
        is_still = [
            stillness.seconds((rank in behind, *sign)) >= self._timeout_s
            for rank, (stillness, sign) in enumerate(zip(self._stillness, signs, strict=True))
        ]
        if behind:
            return [rank for rank in behind if is_still[rank]] or None
        return [] if is_waited(counts) and all(is_still) else None
