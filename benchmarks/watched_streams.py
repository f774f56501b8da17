"""Streams of completions that are watched token by token while something happens to the server."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import httpx

_TIMEOUT_S = 600.0
_RESUME_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A completion of exactly `num_tokens` tokens, greedy where `temperature` is 0. The prompt is a text, or ids.

    `has_logprobs` makes the server say where each token ends; else what comes at once counts as one.
    """

    prompt: str | Sequence[int]
    num_tokens: int
    temperature: float = 0.0
    seed: int = 0
    has_logprobs: bool = True

    def body(self, model: str) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": self.prompt,
            "max_tokens": self.num_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "logprobs": 0 if self.has_logprobs else None,
            "ignore_eos": True,
            "stream": True,
        }


@dataclass(slots=True)
class WatchedStream:
    """What has come of one. It `is_begun` once the server has answered, and so said how it can be resumed.

    `num_ends` counts finish reasons and errors: a whole stream has one.
    """

    begun_s: float
    tokens: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    num_ends: int = 0
    error: str | None = None
    is_begun: bool = False

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def stall_s(self) -> float:
        """The longest time between two tokens, the first one's wait apart."""
        return max((later - earlier for earlier, later in pairwise(self.times_s)), default=0.0)


@dataclass(frozen=True, slots=True)
class Damage:
    """How streams differ from what they should have been, in tokens; and those that had an error or not one end."""

    lost: int = 0
    repeated: int = 0
    altered: int = 0
    failed: int = 0


UNHARMED = Damage()


class Load:
    """Streams under way, by all of `asks` at once. Those that break are resumed for up to `resume_within_s`."""

    def __init__(self, base_url: str, asks: Sequence[Ask], model: str, resume_within_s: float = 0.0) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url, timeout=_TIMEOUT_S, limits=httpx.Limits(max_connections=None), trust_env=False
        )
        self._model = model
        self._resume_within_s = resume_within_s
        self._changed = asyncio.Event()
        self.asks = asks
        self.streams = [WatchedStream(time.monotonic()) for _ in asks]
        self._tasks = [asyncio.create_task(self._run(*pair)) for pair in zip(asks, self.streams, strict=True)]

    @property
    def num_tokens(self) -> int:
        return sum(len(stream.tokens) for stream in self.streams)

    @property
    def is_done(self) -> bool:
        return all(task.done() for task in self._tasks)

    async def until(self, claim: Callable[[], bool]) -> None:
        """Return once `claim`, which speaks of the streams, is true, or all have ended."""
        while not (claim() or self.is_done):
            self._changed.clear()
            await self._changed.wait()

    async def until_part(self, part: float) -> None:
        """Return once this part of all tokens has come."""
        due = part * sum(ask.num_tokens for ask in self.asks)
        await self.until(lambda: self.num_tokens >= due)

    async def finish(self) -> list[WatchedStream]:
        """All streams, once they have ended."""
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await self._client.aclose()
        return self.streams

    async def _run(self, ask: Ask, stream: WatchedStream) -> None:
        place = _Place()
        try:
            await self._read(stream, place, "POST", "/v1/completions", json=ask.body(self._model))
        except httpx.HTTPError as error:
            if not await self._resume(stream, place):
                stream.error = f"{type(error).__name__}: {error}"
                stream.num_ends += 1
        finally:
            self._changed.set()

    async def _resume(self, stream: WatchedStream, place: "_Place") -> bool:
        """Read the rest of a stream that has broken. Whether that was possible in time."""
        give_up_s = time.monotonic() + self._resume_within_s
        while place.stream_id is not None and time.monotonic() < give_up_s:
            await asyncio.sleep(_RESUME_PAUSE_S)
            with contextlib.suppress(httpx.HTTPError):
                await self._read(stream, place, "GET", f"/v1/streams/{place.stream_id}")
                return True
        return False

    async def _read(self, stream: WatchedStream, place: "_Place", method: str, path: str, **body: Any) -> None:
        """Take in what comes, and note the place. Raises httpx.HTTPError."""
        headers = {"x-resumable": "true"} if self._resume_within_s else {}
        if place.event_id is not None:
            headers["Last-Event-ID"] = place.event_id
        async with self._client.stream(method, path, headers=headers, **body) as response:
            if response.status_code not in (200, 204):
                raise httpx.HTTPError((await response.aread()).decode(errors="replace"))
            place.stream_id = response.headers.get("x-stream-id", place.stream_id)
            stream.is_begun = True
            self._changed.set()
            event_id = None
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    event_id = line.removeprefix("id: ")
                elif line.startswith("data: "):
                    place.event_id = event_id
                    if line.startswith("data: {"):
                        _take(stream, json.loads(line.removeprefix("data: ")))
                        self._changed.set()


@dataclass(slots=True)
class _Place:
    """How far a stream has been read."""

    stream_id: str | None = None
    event_id: str | None = None


def _take(stream: WatchedStream, event: dict[str, Any]) -> None:
    if "error" in event:
        stream.error = str(event["error"])
        stream.num_ends += 1
        return
    choice = event["choices"][0]
    text = [choice["text"]] if choice["text"] else []
    tokens = choice["logprobs"]["tokens"] if choice.get("logprobs") else text
    stream.tokens += tokens
    stream.times_s += [time.monotonic()] * len(tokens)
    stream.num_ends += choice["finish_reason"] is not None


async def run_streams(base_url: str, asks: Sequence[Ask], model: str) -> list[WatchedStream]:
    """All at once, undisturbed."""
    return await Load(base_url, asks, model).finish()


def damage_of(expected: Sequence[WatchedStream], found: Sequence[WatchedStream]) -> Damage:
    """Where `found` are the same streams again."""
    lost = repeated = altered = failed = 0
    for before, after in zip(expected, found, strict=True):
        failed += after.error is not None or after.num_ends != 1
        if before.tokens == after.tokens:
            continue
        for kind, a, b, c, d in SequenceMatcher(None, before.tokens, after.tokens, autojunk=False).get_opcodes():
            if kind != "equal":
                altered += min(b - a, d - c)
                lost += max(0, (b - a) - (d - c))
                repeated += max(0, (d - c) - (b - a))
    return Damage(lost, repeated, altered, failed)
