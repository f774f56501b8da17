"""A few buffers that one thread fills with layers in turn, ahead of the thread that computes with them."""

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

logger = logging.getLogger("distllm.engine")

Slot = TypeVar("Slot")

OnWait = Callable[[], object]
"""Called every now and then by a thread that waits for a layer, as long as its process runs."""

_PULSE_S = 0.1


def wait_quietly() -> None:
    """The OnWait of an engine for which no other waits."""


class Ring(Generic[Slot]):
    """Hands out slots filled with the layers of `order`, over and over. One thread takes and gives back.

    `fill` is called with a slot and a layer's number in a thread of the ring's own, `on_wait` in that which takes.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        order: Sequence[int],
        fill: Callable[[Slot, int], None],
        on_wait: OnWait = wait_quietly,
    ) -> None:
        self._order = tuple(order)
        self._fill = fill
        self._on_wait = on_wait
        self._empty: SimpleQueue[Slot | None] = SimpleQueue()  # None ends the thread
        self._filled: SimpleQueue[tuple[int, Slot] | Exception] = SimpleQueue()
        for slot in slots:
            self._empty.put(slot)
        self._thread = threading.Thread(target=self._fill_forever, name="offload-ring", daemon=True)
        self._thread.start()

    def take(self, layer: int) -> Slot:
        """The slot with a layer, as soon as it is filled. Raises what filling raised, now and from then on.

        Layers are expected in order; those that a step left out, because it failed, are passed over.
        """
        assert layer in self._order
        while True:
            filled = self._next_filled()
            if isinstance(filled, Exception):
                self._filled.put(filled)
                raise filled
            number, slot = filled
            if number == layer:
                return slot
            self.give_back(slot)

    def give_back(self, slot: Slot) -> None:
        """The slot may be filled anew."""
        self._empty.put(slot)

    def close(self) -> None:
        """End the thread, once it has filled what it is at."""
        self._empty.put(None)
        self._thread.join()

    def _next_filled(self) -> tuple[int, Slot] | Exception:
        while True:
            try:
                return self._filled.get(timeout=_PULSE_S)
            except Empty:
                self._on_wait()

    def _fill_forever(self) -> None:
        try:
            for layer in itertools.cycle(self._order):
                slot = self._empty.get()
                if slot is None:
                    return
                self._fill(slot, layer)
                self._filled.put((layer, slot))
        except Exception as error:
            logger.exception("the offloaded layers can no longer be read")
            self._filled.put(error)
