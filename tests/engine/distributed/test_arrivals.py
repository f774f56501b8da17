"""The counters by which a rank that hangs is told from one that has nothing to do."""

import os
import threading
import time
from queue import SimpleQueue

import pytest

from distllm.engine.distributed.arrivals import Arrivals, HangWatch, Stillness, is_waited, laggards
from distllm.engine.distributed.shared_bytes import create_descriptor
from distllm.engine.offload.ring import Ring


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


def test_a_rank_that_shows_nothing_while_another_waits_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first, second = ranks(2)
    watch = HangWatch(first, timeout_s=1.5)
    assert watch.laggards() is None
    now = 102.0
    assert watch.laggards() is None, "nobody waits"
    with first.waiting():
        assert watch.laggards() is None
        now = 103.4
        assert watch.laggards() is None
        now = 103.5
        assert watch.laggards() == [1]
        second.pulse()
        assert watch.laggards() is None


def test_the_signs_of_one_rank_do_not_hide_that_another_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first, _, third = ranks(3)
    watch = HangWatch(first, timeout_s=1.5)
    with first.waiting():
        assert watch.laggards() is None
        now = 101.5
        third.pulse()
        assert watch.laggards() == [1]


def test_ranks_that_have_all_come_and_go_no_further_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first, second = ranks(2)
    watch = HangWatch(second, timeout_s=1.5)
    with first.waiting(), second.waiting():
        assert watch.laggards() is None
        now = 101.5
        assert watch.laggards() == []


def test_a_rank_that_waits_for_its_disk_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the disk takes, as long as the rank's process runs; when the layer is there it must move."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first, second = ranks(2)
    pulses: SimpleQueue[None] = SimpleQueue()
    is_read = threading.Event()

    def show_life() -> None:
        second.pulse()
        pulses.put(None)

    def read(_slot: str, _layer: int) -> None:
        assert is_read.wait(60)

    ring = Ring(["slot"], [0], read, show_life)
    watch = HangWatch(first, timeout_s=1.5)
    step = threading.Thread(target=ring.take, args=(0,))
    with first.waiting():
        step.start()
        for _ in range(3):
            pulses.get(timeout=60)
            now += 10.0
            assert watch.laggards() is None
        is_read.set()
        step.join()
        watch.laggards()
        now += 1.5
        assert watch.laggards() == [1]
    ring.close()
