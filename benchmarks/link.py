"""A link between two machines, emulated: a TCP proxy that delays, limits, loses, cuts and damages what it carries.

It shows what programs see of a bad link, not packets: as under real TCP, what is sent into a cut waits and arrives
once the link is mended, and a lost segment holds up whatever follows it. Threads keep time to a tenth of a
millisecond, where an event loop's timers keep it to one.
"""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Queue

_PIECE_BYTES = 64 << 10
_MAX_PIECES = 1024
"""Under way in a direction of a connection; the sender waits where there are more."""
_SEGMENT_BYTES = 1448
_RETRANSMIT_S = 0.01
"""How long a lost segment takes at least to be found missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How one direction of a link is.

    `rate` is in bytes/s, None where it is not limited. `loss` is the part of segments or packets that are lost: in
    a Link each holds up what follows it by a round trip. `is_cut`: nothing arrives.
    """

    delay_s: float = 0.0
    rate: float | None = None
    loss: float = 0.0
    is_cut: bool = False


CLEAR = Conditions()
CUT = Conditions(is_cut=True)


class Direction:
    """All that goes one way. Conditions hold for what is sent from then on; a cut for all that has not arrived."""

    def __init__(self, conditions: Conditions, seed: int) -> None:
        self._conditions = conditions
        self._is_whole = threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._free_s = 0.0  # when the link has sent all that it was given
        self._num_damaged = 0  # pieces yet to be damaged
        self.become(conditions)

    def become(self, conditions: Conditions) -> None:
        """Change the conditions."""
        self._conditions = conditions
        if conditions.is_cut:
            self._is_whole.clear()
        else:
            self._is_whole.set()

    def damage(self, num_pieces: int = 1) -> None:
        """Flip a bit in each of the next pieces."""
        with self._lock:
            self._num_damaged += num_pieces

    def enter(self, piece: bytes) -> tuple[float, bytes]:
        """When a piece that is sent now arrives, by time.monotonic(), and as what."""
        conditions = self._conditions
        with self._lock:
            sent_s = max(time.monotonic(), self._free_s)
            if conditions.rate is not None:
                sent_s += len(piece) / conditions.rate
            num_segments = -(-len(piece) // _SEGMENT_BYTES)
            num_lost = sum(self._random.random() < conditions.loss for _ in range(num_segments))
            self._free_s = sent_s + num_lost * max(2 * conditions.delay_s, _RETRANSMIT_S)
            if self._num_damaged and piece:
                self._num_damaged -= 1
                piece = _with_flipped_bit(piece, self._random.randrange(8 * len(piece)))
            return self._free_s + conditions.delay_s, piece

    def wait_until_whole(self) -> None:
        self._is_whole.wait()


class Link:
    """Carries connections that are made to its own port on to `target`, until it is closed.

    `forward` is from whoever connects to the target, `backward` the other way.
    """

    def __init__(self, target: tuple[str, int], conditions: Conditions = CLEAR, seed: int = 0) -> None:
        self.forward, self.backward = Direction(conditions, seed), Direction(conditions, seed + 1)
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self.port = int(self._listener.getsockname()[1])
        self._begin(self._accept)

    def become(self, conditions: Conditions) -> None:
        """Change both directions."""
        self.forward.become(conditions)
        self.backward.become(conditions)

    def reset(self) -> None:
        """Break all connections, with what is under way in them."""
        for end in list(self._open):
            _shut(end)

    def close(self) -> None:
        self._is_closed = True
        _shut(self._listener)
        self.become(CLEAR)
        self.reset()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(near)
            self._begin(partial(self._connect, near))

    def _connect(self, near: socket.socket) -> None:
        self.forward.wait_until_whole()
        self.backward.wait_until_whole()
        try:
            far = socket.create_connection(self._target)
        except OSError:
            self._forget(near)
            return
        self._open.add(far)
        if self._is_closed:
            self.reset()
        there, back = _Flow(self.forward, near, far), _Flow(self.backward, far, near)
        receiving = [threading.Thread(target=flow.receive, daemon=True) for flow in (there, back)]
        delivering = threading.Thread(target=back.deliver, daemon=True)
        for thread in (*receiving, delivering):
            thread.start()
        there.deliver()
        for thread in (*receiving, delivering):
            thread.join()
        self._forget(near)
        self._forget(far)

    def _forget(self, end: socket.socket) -> None:
        self._open.discard(end)
        end.close()


class _Flow:
    """One direction of one connection."""

    def __init__(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self._direction = direction
        self._source, self._sink = source, sink
        self._under_way: Queue[tuple[float, bytes]] = Queue(_MAX_PIECES)
        for end in (source, sink):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self) -> None:
        """Until the source ends, of which an empty piece tells."""
        piece = b"..."
        while piece:
            try:
                piece = self._source.recv(_PIECE_BYTES)
            except OSError:
                piece = b""
            self._under_way.put(self._direction.enter(piece))

    def deliver(self) -> None:
        """Until the source has ended; what comes after the sink has broken goes nowhere."""
        while True:
            due_s, piece = self._under_way.get()
            time.sleep(max(0.0, due_s - time.monotonic()))
            self._direction.wait_until_whole()
            if not piece:
                with contextlib.suppress(OSError):
                    self._sink.shutdown(socket.SHUT_WR)
                return
            try:
                self._sink.sendall(piece)
            except OSError:
                _shut(self._source)


def _shut(end: socket.socket) -> None:
    """Wake whoever waits for it, too."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _with_flipped_bit(piece: bytes, number: int) -> bytes:
    damaged = bytearray(piece)
    damaged[number // 8] ^= 1 << number % 8
    return bytes(damaged)
