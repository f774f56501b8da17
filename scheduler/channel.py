"""Frames of msgpack over a local stream socket, between the front end and the engine process.

A frame is a 4-byte big-endian length and that many bytes. Knows nothing of what the messages mean.
"""

import asyncio
import socket
import struct
import threading
from typing import Any, Generic, TypeVar

import msgspec

_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 1 << 30

Received = TypeVar("Received")


class ChannelClosed(ConnectionError):
    """The other side has gone."""


class BlockingChannel(Generic[Received]):
    """One end for threads: any may send while one receives. `received` is the union of messages."""

    def __init__(self, sock: socket.socket, received: Any) -> None:
        self._socket = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(received)
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Raises ChannelClosed. Blocks while the other side is slow to read."""
        payload = self._encoder.encode(message)
        try:
            with self._sending:
                self._socket.sendall(_LENGTH.pack(len(payload)) + payload)
        except OSError as error:
            raise ChannelClosed from error

    def receive(self) -> Received:
        """Raises ChannelClosed at the end of the stream."""
        (length,) = _LENGTH.unpack(self._receive_exactly(_LENGTH.size))
        return self._decoder.decode(self._receive_exactly(_checked(length)))

    def _receive_exactly(self, size: int) -> bytearray:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            try:
                received = self._socket.recv_into(view)
            except OSError as error:
                raise ChannelClosed from error
            if received == 0:
                raise ChannelClosed
            view = view[received:]
        return buffer


class AsyncChannel(Generic[Received]):
    """One end for an event loop. `received` is the union of messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(received)

    @classmethod
    async def open(cls, sock: socket.socket, received: Any) -> "AsyncChannel[Received]":
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, received)

    def send(self, message: object) -> None:
        """Queue a message. What the other side will never read is dropped with the channel."""
        payload = self._encoder.encode(message)
        self._writer.write(_LENGTH.pack(len(payload)) + payload)

    async def receive(self) -> Received:
        """Raises ChannelClosed at the end of the stream."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return self._decoder.decode(await self._reader.readexactly(_checked(length)))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ChannelClosed from error

    def close(self) -> None:
        self._writer.close()


def _checked(length: int) -> int:
    if length > MAX_FRAME_BYTES:
        raise ChannelClosed(f"a frame of {length} bytes was announced; at most {MAX_FRAME_BYTES} are accepted")
    return length
