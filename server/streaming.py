"""A generation as server-sent events: frames as they come, an error frame when it fails, [DONE] at the end.

Knows nothing of what the frames mean.
"""

import logging
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

import anyio
import msgspec
from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from distllm.server.choice import ChoiceDelta
from distllm.server.errors import GenerationFailed, error_frame
from distllm.server.generation import Generation

logger = logging.getLogger("distllm.server")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class Chunks(Protocol):
    """What an endpoint makes of a generation."""

    def opening(self) -> Iterable[msgspec.Struct]: ...

    def of(self, delta: ChoiceDelta) -> Iterable[msgspec.Struct]: ...

    def closing(self) -> Iterable[msgspec.Struct]: ...


class GenerationStream(EventSourceResponse):
    """Streams an entered Generation and leaves it, whatever happens: end, failure, or a client that goes away.

    After each `keep_alive_s` of silence a comment is sent.
    """

    def __init__(self, generation: Generation, chunks: Chunks, keep_alive_s: float) -> None:
        headers = generation.routing.forecast.headers
        super().__init__(frames(generation, chunks), headers=headers, ping=keep_alive_s, sep="\n")
        self._generation = generation
        self._last_sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_note(message: Message) -> None:
            await send(message)
            self._last_sent_s = anyio.current_time()

        async with self._generation:
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
                    await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    async def _listen_for_exit_signal_with_grace(self) -> None:
        """Live streams outlast SIGTERM: the server drains, and the engine ends what does not end in time."""
        await anyio.sleep_forever()


async def frames(generation: Generation, chunks: Chunks) -> AsyncIterator[bytes]:
    """Opening chunks, the chunks of every delta, closing chunks, [DONE]; a failure is one error frame instead of
    the rest. Frames that are known together leave together: a write costs more than a frame.
    """
    waiting = b"".join(map(frame, chunks.opening()))
    try:
        async for deltas in generation:
            waiting += b"".join(frame(chunk) for delta in deltas for chunk in chunks.of(delta))
            if waiting and not generation.is_finished:
                yield waiting
                waiting = b""
        waiting += b"".join(map(frame, chunks.closing()))
    except Exception as error:
        if not isinstance(error, GenerationFailed):
            logger.error("%s failed in the middle of its stream", generation.request_id, exc_info=error)
        waiting += error_frame(error)
    yield waiting + DONE


def frame(chunk: msgspec.Struct) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
