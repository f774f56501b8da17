"""Messages over TCP between ranks on several hosts: a kind, a length, and so many bytes."""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from enum import IntEnum

_HEADER = struct.Struct(">BI")
_PORTION_BYTES = 1 << 18


class Kind(IntEnum):
    """What a message is."""

    START = 1  # to a rank: what to load, in JSON
    STEP = 2  # to a rank: encoded tensors
    RESULT = 3  # from a rank: a digest and encoded tensors
    BEAT = 4  # both ways: that the sender runs, and how far it is
    ALARM = 5  # from a rank: why it cannot go on, in UTF-8


_MAX_BYTES = {
    Kind.START: 1 << 24,
    Kind.STEP: 1 << 30,
    Kind.RESULT: 1 << 30,
    Kind.BEAT: 1 << 16,
    Kind.ALARM: 1 << 16,
}


class WireClosed(ConnectionError):
    """The other end has gone, or has sent what is no message."""


class Wire:
    """One end of an authenticated connection. Any thread may send while one receives.

    `on_portion` is called, in the thread that receives, for every part of a long message that has come.
    """

    def __init__(self, connection: socket.socket, on_portion: Callable[[], None] = lambda: None) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._on_portion = on_portion
        self._writable = select.poll()
        self._writable.register(connection, select.POLLOUT)
        self.heard_s = time.monotonic()
        self.peer = str(connection.getpeername()[0])

    def send(self, kind: Kind, *buffers: bytes | memoryview) -> None:
        """Raises WireClosed. Blocks while the other side is slow to read."""
        length = sum(map(len, buffers))
        assert length <= _MAX_BYTES[kind], f"a message of {length} bytes"
        try:
            with self._sending:
                for buffer in _portions(_HEADER.pack(kind, length), buffers):
                    self._socket.sendall(buffer)
        except OSError as error:
            raise WireClosed(str(error)) from None

    def send_beat(self, payload: bytes) -> None:
        """Never blocks: where something is being sent, or cannot be, that or its absence says as much."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            if self._writable.poll(0):
                self._socket.sendall(_HEADER.pack(Kind.BEAT, len(payload)) + payload)
        except OSError as error:
            raise WireClosed(str(error)) from None
        finally:
            self._sending.release()

    def receive(self) -> tuple[Kind, bytearray]:
        """Raises WireClosed."""
        number, length = _HEADER.unpack(self._receive_exactly(_HEADER.size))
        if number not in set(Kind) or length > _MAX_BYTES[Kind(number)]:
            raise WireClosed(f"a message of kind {number} and {length} bytes was announced")
        return Kind(number), self._receive_exactly(length)

    def close(self) -> None:
        """End the connection, also for a thread that is receiving."""
        with contextlib.suppress(OSError):  # it has ended before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive_exactly(self, size: int) -> bytearray:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            try:
                received = self._socket.recv_into(view, min(len(view), _PORTION_BYTES))
            except OSError as error:
                raise WireClosed(str(error)) from None
            if received == 0:
                raise WireClosed("the connection was closed")
            self.heard_s = time.monotonic()
            view = view[received:]
            if size >= _PORTION_BYTES:
                self._on_portion()
        return buffer


def _portions(header: bytes, buffers: tuple[bytes | memoryview, ...]) -> list[bytes | memoryview]:
    """A short message in one piece, a long one without a copy."""
    if sum(map(len, buffers)) < _PORTION_BYTES:
        return [b"".join((header, *buffers))]
    return [header, *buffers]
