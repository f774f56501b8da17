"""A generation as server-sent events: frames as they come, an error frame when it fails, [DONE] at the end.

Knows nothing of what the frames mean.
"""

import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

import anyio
import msgspec
from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from distllm.server.choice import ChoiceDelta
from distllm.server.errors import GenerationFailed, error_body
from distllm.server.generation import Generation
from distllm.server.protocol.responses import ChatChunk, Completion

logger = logging.getLogger("distllm.server")

KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_AMONG_IDS = b": keep-alive\n"
"""After an event with an id OpenAI's client takes an empty line for an event, whose data it then cannot read."""


class Chunks(Protocol):
    """What an endpoint makes of a generation."""

    def opening(self) -> Iterable[Completion | ChatChunk]: ...

    def of(self, delta: ChoiceDelta) -> Iterable[Completion | ChatChunk]: ...

    def closing(self) -> Iterable[Completion | ChatChunk]: ...


class Event(NamedTuple):
    """The data of one event, and the choice that it belongs to; what concerns no choice goes with the first."""

    choice: int
    data: bytes


DONE = Event(0, b"[DONE]")


class EventStream(EventSourceResponse):
    """Streams frames within the block of their `owner`, which is left whatever happens: end, failure, or a client
    that goes away.

    After each `keep_alive_s` of silence a comment is sent, `keep_alive`.
    """

    def __init__(
        self,
        frames: AsyncIterable[bytes],
        owner: AbstractAsyncContextManager[object],
        keep_alive_s: float,
        *,
        keep_alive: bytes = KEEP_ALIVE,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(frames, headers=headers, ping=keep_alive_s, sep="\n")
        self._owner = owner
        self._keep_alive = keep_alive
        self._last_sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_note(message: Message) -> None:
            await send(message)
            self._last_sent_s = anyio.current_time()

        async with self._owner:
            await super().__call__(scope, receive, send_and_note)

    async def _ping(self, send: Send) -> None:
        self._last_sent_s = anyio.current_time()
        while self.active:
            left_s = self._last_sent_s + self.ping_interval - anyio.current_time()
            if left_s > 0:
                await anyio.sleep(left_s)
                continue
            async with self._send_lock:
                if self.active:
                    await send({"type": "http.response.body", "body": self._keep_alive, "more_body": True})

    async def _listen_for_exit_signal_with_grace(self) -> None:
        """Live streams outlast SIGTERM: the server drains, and the engine ends what does not end in time."""
        await anyio.sleep_forever()


async def frames(generation: Generation, chunks: Chunks) -> AsyncIterator[bytes]:
    """The events of a generation as they are sent. Those that are known together leave together: a write costs
    more than a frame."""
    async for batch in events(generation, chunks):
        yield b"".join([b"data: " + event.data + b"\n\n" for event in batch])


async def events(
    generation: Generation, chunks: Chunks, shows: Callable[[Exception], bool] = lambda _: True
) -> AsyncIterator[list[Event]]:
    """Opening chunks, the chunks of every delta, closing chunks, [DONE]; a failure is one error event instead of
    the rest, unless `shows` says that it is to be raised.
    """
    waiting = [_event(chunk) for chunk in chunks.opening()]
    try:
        async for deltas in generation:
            waiting.extend(_event(chunk) for delta in deltas for chunk in chunks.of(delta))
            if waiting and not generation.is_finished:
                yield waiting
                waiting = []
        waiting.extend(_event(chunk) for chunk in chunks.closing())
    except Exception as error:
        if not shows(error):
            raise
        if not isinstance(error, GenerationFailed):
            logger.error("%s failed in the middle of its stream", generation.request_id, exc_info=error)
        waiting.append(Event(0, msgspec.json.encode(error_body(error))))
    yield [*waiting, DONE]


def _event(chunk: Completion | ChatChunk) -> Event:
    return Event(chunk.choices[0].index if chunk.choices else 0, msgspec.json.encode(chunk))
