"""A link between two network namespaces that this process carries, packet by packet, as well or badly as told.

Where `link.py` shows programs what a bad link comes to, here their kernels meet it: lost packets are sent again,
and connections stand still or break by the rules of real TCP.
"""

import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Iterator

from benchmarks.link import Conditions
from benchmarks.namespaces import Namespace

_MTU = 9000
"""1 Gbit/s of such packets and their acknowledgements take a third of a processor, of 1500 bytes two thirds."""
_MAX_QUEUE_BYTES = 4 << 20
_BURST = 64
"""Packets that are read before those that are due are delivered."""


class PacketDirection:
    """All packets that go one way, in order. Times are of time.monotonic().

    Conditions hold for what is sent from then on; what would arrive during a cut is lost. Where the rate is
    limited, about `max_queue_bytes` wait for their turn at most, and what finds no room is lost.
    """

    def __init__(self, conditions: Conditions, seed: int, max_queue_bytes: int = _MAX_QUEUE_BYTES) -> None:
        self._conditions = conditions
        self._random = random.Random(seed)
        self._max_queue_bytes = max_queue_bytes
        self._free_s = 0.0  # when the link has sent all that it was given
        self._under_way: deque[tuple[float, bytes]] = deque()  # when it arrives, and what
        self.num_carried = 0
        self.num_lost = 0

    @property
    def next_due_s(self) -> float | None:
        """When the first packet under way arrives; None where none is."""
        return self._under_way[0][0] if self._under_way else None

    def become(self, conditions: Conditions) -> None:
        """Change the conditions; any thread may."""
        self._conditions = conditions

    def enter(self, packet: bytes, now_s: float) -> None:
        conditions = self._conditions
        sent_s = max(now_s, self._free_s)
        if conditions.rate is not None:
            if (sent_s - now_s) * conditions.rate > self._max_queue_bytes:
                self.num_lost += 1
                return
            sent_s += len(packet) / conditions.rate
        self._free_s = sent_s
        if conditions.is_cut or self._random.random() < conditions.loss:
            self.num_lost += 1
            return
        self._under_way.append((sent_s + conditions.delay_s, packet))

    def leave(self, now_s: float) -> Iterator[bytes]:
        """Take out what has arrived by now."""
        under_way = self._under_way
        while under_way and under_way[0][0] <= now_s:
            _, packet = under_way.popleft()
            if self._conditions.is_cut:
                self.num_lost += 1
            else:
                self.num_carried += 1
                yield packet


class PacketLink:
    """Joins two namespaces until it is closed: each reaches the other's address, by a device that is made for it.

    `forward` is from `near` to `far`, `backward` the other way. Raises NoNamespaces.
    """

    def __init__(self, near: Namespace, far: Namespace, conditions: Conditions, seed: int) -> None:
        self.forward, self.backward = PacketDirection(conditions, seed), PacketDirection(conditions, seed + 1)
        self._near = near.open_tunnel(far.address, _MTU)
        try:
            self._far = far.open_tunnel(near.address, _MTU)
        except BaseException:
            os.close(self._near)
            raise
        self._is_over = os.eventfd(0)
        self._carrying = threading.Thread(target=self._carry, name=f"{near.address} to {far.address}", daemon=True)
        self._carrying.start()

    def close(self) -> None:
        os.eventfd_write(self._is_over, 1)
        self._carrying.join()
        for descriptor in (self._near, self._far, self._is_over):
            os.close(descriptor)

    def _carry(self) -> None:
        ways = ((self._near, self.forward, self._far), (self._far, self.backward, self._near))
        while True:
            for _, direction, sink in ways:
                for packet in direction.leave(time.monotonic()):
                    _write(sink, packet)
            ready, _, _ = select.select([self._near, self._far, self._is_over], [], [], self._wait_s())
            if self._is_over in ready:
                return
            for source, direction, _ in ways:
                if source in ready:
                    _read(source, direction)

    def _wait_s(self) -> float | None:
        """Until a packet is due; None where none is under way."""
        due_s = [due_s for way in (self.forward, self.backward) if (due_s := way.next_due_s) is not None]
        return max(0.0, min(due_s) - time.monotonic()) if due_s else None


def _read(source: int, direction: PacketDirection) -> None:
    try:
        for _ in range(_BURST):
            direction.enter(os.read(source, 1 << 16), time.monotonic())
    except BlockingIOError:
        return


def _write(sink: int, packet: bytes) -> None:
    """What the kernel of the other side has no room for is lost, as on any network card."""
    try:
        os.write(sink, packet)
    except BlockingIOError:
        return
