"""Several engine streams read as one. Owns the tasks that read them."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from distllm.scheduler.messages import SequenceOutput
from distllm.server.ports import OutputStream

_QUEUE_SIZE = 64

Item = tuple[int, SequenceOutput]


class MergedStream:
    """Reads (number of the stream, output) until every stream has ended. A single stream is read directly."""

    def __init__(self, streams: Sequence[OutputStream]) -> None:
        self._streams = streams
        self._queue: asyncio.Queue[Item | None] = asyncio.Queue(_QUEUE_SIZE)
        self._readers: list[asyncio.Task[None]] = []
        self._num_open = len(streams)

    async def __aenter__(self) -> Self:
        if len(self._streams) > 1:
            self._readers = [
                asyncio.create_task(self._read(number, stream)) for number, stream in enumerate(self._streams)
            ]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if not self._readers:
            return 0, await self._streams[0].__anext__()
        while self._num_open:
            item = await self._queue.get()
            if item is not None:
                return item
            self._num_open -= 1
        for reader in self._readers:
            await reader  # raises what a reader met
        raise StopAsyncIteration

    async def _read(self, number: int, stream: OutputStream) -> None:
        """Put the outputs and a None; a cancelled reader puts nothing, for nobody may be left to take it."""
        try:
            while True:
                await self._queue.put((number, await stream.__anext__()))
        except StopAsyncIteration:
            await self._queue.put(None)
        except Exception:
            await self._queue.put(None)
            raise
