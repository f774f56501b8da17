"""Streamed answers as iterators of typed chunks. Closing one closes its connection, which aborts the request."""

from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import httpx

from distllm.clients.errors import ClientError, ConnectionLostError, StreamError, read_error_object
from distllm.clients.resuming import BROKEN, AsyncResumer, Resumer, resumption_of
from distllm.clients.sse import SSEParser
from distllm.clients.transport import Connection


class _Choice(Protocol):
    @property
    def index(self) -> int: ...

    @property
    def finish_reason(self) -> str | None: ...


class _Chunk(Protocol):
    @property
    def choices(self) -> list[Any]: ...


Chunk = TypeVar("Chunk", bound=_Chunk)


class ChunkReader(Generic[Chunk]):
    """Bytes of an event stream in, chunks out. One rule for the end: `[DONE]`, or every choice has finished.

    An answer may come over several connections: `reconnect` says that the next bytes are of another one.
    """

    def __init__(self, read_event: Callable[[str], Chunk]) -> None:
        self._read_event = read_event
        self._parser = SSEParser()
        self._open_choices: set[int] = set()
        self._has_chunks = False
        self._is_done = False

    @property
    def is_done(self) -> bool:
        return self._is_done

    @property
    def last_event_id(self) -> str:
        """Of the last event that was whole."""
        return self._parser.last_event_id

    def reconnect(self) -> None:
        """Forget the part of an event that has come."""
        self._parser = SSEParser(self._parser.last_event_id)

    def feed(self, received: bytes) -> Iterator[Chunk]:
        """Raises StreamError for an error event, UnexpectedReplyError for one that is no chunk."""
        for data in self._parser.feed(received):
            if data == "[DONE]":
                self._is_done = True
            elif not self._is_done:
                yield self._read(data)

    def end(self) -> None:
        """Say that no more bytes come. Raises ConnectionLostError where the answer is not whole."""
        if not self._is_done and (self._open_choices or not self._has_chunks):
            raise ConnectionLostError("the stream ended in the middle of the answer")

    def _read(self, data: str) -> Chunk:
        if '"error"' in data and (fields := read_error_object(data)) is not None:
            raise StreamError.from_object(fields)
        chunk = self._read_event(data)
        self._has_chunks = True
        for choice in chunk.choices:
            self._note(choice)
        return chunk

    def _note(self, choice: _Choice) -> None:
        if choice.finish_reason is None:
            self._open_choices.add(choice.index)
        else:
            self._open_choices.discard(choice.index)


class Stream(Generic[Chunk]):
    """Chunks as they arrive. Iterate once; use it as a context manager where you may stop early.

    With a `resumer` it goes on over another connection where one breaks.
    """

    def __init__(
        self,
        response: httpx.Response,
        connection: Connection,
        reader: ChunkReader[Chunk],
        resumer: Resumer | None = None,
    ) -> None:
        self._response = response
        self._connection = connection
        self._reader = reader
        self._resumer = resumer
        self._resumption = resumption_of(response, resumer)
        self._chunks = self._read()

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more of it; the server stops working on it."""
        self._response.close()
        resumption, self._resumption = self._resumption, None
        if self._resumer is not None and resumption is not None and not self._reader.is_done:
            self._resumer.end(resumption)

    def _read(self) -> Iterator[Chunk]:
        try:
            while True:
                try:
                    with self._connection.errors():
                        for received in self._response.iter_bytes():
                            yield from self._reader.feed(received)
                    self._reader.end()
                    return
                except BROKEN as error:
                    self._go_on(error)
        finally:
            self._response.close()

    def _go_on(self, error: ClientError) -> None:
        self._response.close()
        if self._resumer is None or self._resumption is None:
            raise error
        self._resumption.note_break(self._reader.last_event_id, error)
        self._response = self._resumer.reopen(self._resumption)
        self._reader.reconnect()


class AsyncStream(Generic[Chunk]):
    """Chunks as they arrive. Iterate once; use it as a context manager where you may stop early.

    With a `resumer` it goes on over another connection where one breaks.
    """

    def __init__(
        self,
        response: httpx.Response,
        connection: Connection,
        reader: ChunkReader[Chunk],
        resumer: AsyncResumer | None = None,
    ) -> None:
        self._response = response
        self._connection = connection
        self._reader = reader
        self._resumer = resumer
        self._resumption = resumption_of(response, resumer)
        self._chunks = self._read()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Take no more of it; the server stops working on it."""
        await self._response.aclose()
        resumption, self._resumption = self._resumption, None
        if self._resumer is not None and resumption is not None and not self._reader.is_done:
            await self._resumer.end(resumption)

    async def _read(self) -> AsyncIterator[Chunk]:
        try:
            while True:
                try:
                    with self._connection.errors():
                        async for received in self._response.aiter_bytes():
                            for chunk in self._reader.feed(received):
                                yield chunk
                    self._reader.end()
                    return
                except BROKEN as error:
                    await self._go_on(error)
        finally:
            await self._response.aclose()

    async def _go_on(self, error: ClientError) -> None:
        await self._response.aclose()
        if self._resumer is None or self._resumption is None:
            raise error
        self._resumption.note_break(self._reader.last_event_id, error)
        self._response = await self._resumer.reopen(self._resumption)
        self._reader.reconnect()
