"""What a peer could not load is asked for again: after a while, after a longer one, or when it has more memory."""

import msgspec

from distllm.engine.pipeline.coordinator.refusals import Refusals
from tests.engine.pipeline.coordinator.peers import WHOLE
from tests.engine.pipeline.coordinator.test_standing import Clock

OTHER = msgspec.structs.replace(WHOLE, begin=4)


def test_a_refusal_is_believed_for_longer_each_time() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    for pause_s in (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0):
        refusals.note(WHOLE, "the disk is full", 1000)
        clock.now_s += pause_s - 0.1
        assert refusals.reason(WHOLE) == "the disk is full"
        assert dict(refusals.believed()) == {WHOLE: "the disk is full"}
        clock.now_s += 0.2
        assert refusals.reason(WHOLE) is None
        assert dict(refusals.believed()) == {}


def test_other_stages_are_not_refused() -> None:
    refusals = Refusals(Clock())
    refusals.note(WHOLE, "no room", 1000)
    assert refusals.reason(OTHER) is None


def test_more_free_memory_than_there_was_ends_a_refusal() -> None:
    refusals = Refusals(Clock())
    refusals.note(WHOLE, "no room", 1000 << 20)
    refusals.note(OTHER, "no room", 2000 << 20)
    refusals.note_free(1200 << 20)
    assert refusals.reason(WHOLE) == "no room"
    refusals.note_free(1300 << 20)
    assert (refusals.reason(WHOLE), refusals.reason(OTHER)) == (None, "no room")


def test_a_little_more_than_next_to_nothing_is_not_more() -> None:
    refusals = Refusals(Clock())
    refusals.note(WHOLE, "no room", 0)
    refusals.note_free(63 << 20)
    assert refusals.reason(WHOLE) == "no room"
