"""Slots are filled in turn and ahead, and handed out in the order of the layers."""

import threading

import pytest

from distllm.engine.offload.ring import Ring

TIMEOUT_S = 10


class Slot:
    layer = -1


class Filler:
    """Counts what it filled; fails at layer `fault`."""

    def __init__(self, fault: int | None = None) -> None:
        self.filled: list[int] = []
        self._fault = fault
        self._changed = threading.Condition()

    def __call__(self, slot: Slot, layer: int) -> None:
        if layer == self._fault:
            raise OSError(5, "the disk is gone")
        slot.layer = layer
        with self._changed:
            self.filled.append(layer)
            self._changed.notify()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.filled) >= count, TIMEOUT_S)


def test_layers_come_round_in_order() -> None:
    ring = Ring([Slot(), Slot()], [4, 7, 9], Filler())
    for layer in [4, 7, 9] * 3:
        slot = ring.take(layer)
        assert slot.layer == layer
        ring.give_back(slot)
    ring.close()


def test_every_slot_is_filled_ahead_and_none_that_is_in_use() -> None:
    filler = Filler()
    ring = Ring([Slot(), Slot(), Slot()], range(5), filler)
    filler.wait_for(3)
    first = ring.take(0)
    assert (first.layer, filler.filled) == (0, [0, 1, 2])
    ring.give_back(first)
    filler.wait_for(4)
    assert filler.filled == [0, 1, 2, 3]
    ring.close()


def test_layers_that_were_left_out_are_passed_over() -> None:
    ring = Ring([Slot(), Slot()], range(5), Filler())
    ring.give_back(ring.take(1))
    assert ring.take(0).layer == 0
    ring.close()


def test_a_fault_is_raised_in_its_turn_and_from_then_on() -> None:
    ring = Ring([Slot(), Slot()], range(3), Filler(fault=1))
    assert ring.take(0).layer == 0
    for layer in (1, 2):
        with pytest.raises(OSError, match="the disk is gone"):
            ring.take(layer)
    ring.close()
