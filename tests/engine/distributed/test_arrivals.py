"""The counters by which a rank that hangs is told from one that has nothing to do."""

import os
import threading
import time

import pytest

from distllm.engine.distributed.arrivals import Arrivals, Stillness, is_waited, laggards
from distllm.engine.distributed.shared_bytes import create_descriptor


def ranks(size: int) -> list[Arrivals]:
    descriptor = create_descriptor()
    try:
        return [Arrivals(descriptor, rank, size) for rank in range(size)]
    finally:
        os.close(descriptor)


def test_idle_ranks_wait_for_nobody() -> None:
    first, second = ranks(2)
    for rank in (first, second):
        with rank.waiting():
            pass
    assert not is_waited(first.snapshot())
    assert laggards(second.snapshot()) == []


def test_the_rank_that_has_not_come_is_the_one_waited_for() -> None:
    first, second, third = ranks(3)
    with first.waiting(), third.waiting():
        assert is_waited(second.snapshot())
        assert laggards(first.snapshot()) == [1]
        with second.waiting():
            assert is_waited(first.snapshot())
            assert laggards(first.snapshot()) == []


def test_meeting_ends_when_the_last_has_come() -> None:
    first, second = ranks(2)
    order: list[str] = []

    def come_late() -> None:
        time.sleep(0.1)
        order.append("second comes")
        with second.waiting():
            second.meet()

    late = threading.Thread(target=come_late)
    late.start()
    with first.waiting():
        first.meet()
        order.append("first goes on")
    late.join()
    assert order == ["second comes", "first goes on"]


def test_beats_are_seen_by_all_ranks() -> None:
    first, second = ranks(2)
    first.beat()
    first.beat()
    assert second.num_beats == 2


def test_stillness_is_counted_from_the_last_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stillness = Stillness()
    assert stillness.seconds("a") == 0
    now = 103.0
    assert stillness.seconds("a") == 3
    assert stillness.seconds("b") == 0
    now = 104.5
    assert stillness.seconds("b") == 1.5
