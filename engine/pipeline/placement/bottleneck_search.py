"""The best trade between a sum and a maximum, exactly, by bisection on the maximum. Knows nothing of plans.

A plan's round adds up along its chain, its bottleneck does not. So a search for the shortest round is asked with
few limits for the bottleneck, and what it answers rules out most others.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """A plan, what its round takes and what its bottleneck takes."""

    plan: T
    round_ns: int
    bottleneck_ns: int


def least(
    limits_ns: Sequence[int],
    shortest_round: Callable[[int], Candidate[T] | None],
    value: Callable[[int, int], int],
    below: float,
) -> Candidate[T] | None:
    """The candidate with the least `value(round_ns, bottleneck_ns)`, None unless that is less than `below`.

    `limits_ns` are all that a bottleneck can be, rising. `shortest_round(limit_ns)` has the shortest round of all
    whose bottleneck keeps within the limit. `value` does not fall when either rises.

    The candidate for one limit leaves two intervals: limits below its bottleneck, with rounds no shorter than its
    own, and higher limits than the one asked for. In between nothing is better. The first limit asked for is the
    highest that could do, as often it shows that none does.
    """
    best: Candidate[T] | None = None
    intervals = [(0, len(limits_ns), 0)]  # begin, end, and what no round in there is shorter than
    while intervals:
        begin, end, shortest_ns = intervals.pop()
        end = bisect_left(limits_ns, below, begin, end, key=partial(value, shortest_ns))
        if begin == end:
            continue
        middle = (begin + end) // 2 if shortest_ns else end - 1
        found = shortest_round(limits_ns[middle])
        intervals.append((middle + 1, end, shortest_ns))
        if found is None:
            continue
        if value(found.round_ns, found.bottleneck_ns) < below:
            best, below = found, value(found.round_ns, found.bottleneck_ns)
        intervals.append((begin, bisect_left(limits_ns, found.bottleneck_ns, begin, middle), found.round_ns))
    return best
