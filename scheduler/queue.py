"""Sequences in the order in which they are served."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from distllm.scheduler.sequence import Sequence

_rank = attrgetter("rank")


class SequenceQueue:
    """Sorted by rank: smaller priority first, then earlier arrival. Ranks are unique."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._sequences)

    @property
    def head(self) -> Sequence:
        return self._sequences[0]

    def add(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self._sequences, sequence.rank, key=_rank)
        assert self._sequences[index] is sequence
        del self._sequences[index]
