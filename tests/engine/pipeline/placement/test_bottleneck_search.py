"""The search for a sum and a maximum finds what looking at every candidate finds."""

from collections.abc import Callable, Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.placement.bottleneck_search import Candidate, least

CANDIDATES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=30)

VALUES = {
    "sum": lambda round_ns, bottleneck_ns: round_ns + bottleneck_ns,
    "maximum": lambda round_ns, bottleneck_ns: max(round_ns, bottleneck_ns),
    "cycle": lambda round_ns, bottleneck_ns: max(round_ns, 3 * bottleneck_ns),
    "chunks": lambda round_ns, bottleneck_ns: max(round_ns + 5 * bottleneck_ns, 2 * round_ns + bottleneck_ns),
}


class ShortestRound:
    """Answers from a list and counts how often it was asked."""

    def __init__(self, candidates: Sequence[tuple[int, int]]) -> None:
        self.num_asked = 0
        self._candidates = candidates

    def __call__(self, limit_ns: int) -> Candidate[int] | None:
        self.num_asked += 1
        within = [(*times, index) for index, times in enumerate(self._candidates) if times[1] <= limit_ns]
        if not within:
            return None
        round_ns, bottleneck_ns, index = min(within)
        return Candidate(index, round_ns, bottleneck_ns)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@given(candidates=CANDIDATES, more_limits=st.lists(st.integers(1, 60)), below=st.integers(2, 300) | st.just(inf))
def test_nothing_is_less_than_what_is_found(
    value: Callable[[int, int], int], candidates: list[tuple[int, int]], more_limits: list[int], below: float
) -> None:
    limits_ns = sorted({bottleneck_ns for _, bottleneck_ns in candidates} | set(more_limits))
    found = least(limits_ns, ShortestRound(candidates), value, below)
    smallest = min(value(*times) for times in candidates)
    if smallest < below:
        assert found is not None
        assert value(*candidates[found.plan]) == smallest
    else:
        assert found is None


def test_few_limits_are_asked_for() -> None:
    candidates = [(2000 - 2 * number, number) for number in range(1, 1000)]
    shortest_round = ShortestRound(candidates)
    found = least(
        range(1, 1000), shortest_round, lambda round_ns, bottleneck_ns: max(round_ns, 2 * bottleneck_ns), inf
    )
    assert found is not None
    assert found.bottleneck_ns == 500
    assert shortest_round.num_asked < 15
