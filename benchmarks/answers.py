"""What one exchange tells of its request: the times of its chunks of text, its tokens, or why it failed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.connection import Exchange
from distllm.clients.sse import SSEParser


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it, in the terms of `vllm bench serve`. Seconds.

    `chunk_times_s` are the arrivals of chunks with text, counted from the moment of sending. `num_output_tokens` is
    the server's usage, or the number of those chunks where it sends none (`is_counted_by_usage`).
    """

    sent_s: float
    chunk_times_s: tuple[float, ...]
    num_input_tokens: int
    num_output_tokens: int
    is_counted_by_usage: bool
    failure: str | None = None

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.chunk_times_s[0]

    @property
    def e2el_s(self) -> float:
        """Time to the last token."""
        return self.chunk_times_s[-1]

    @property
    def tpot_s(self) -> float | None:
        """Mean time of a token after the first; None where there is only one."""
        if self.num_output_tokens < 2:
            return None
        return (self.e2el_s - self.ttft_s) / (self.num_output_tokens - 1)

    @property
    def itls_s(self) -> Iterator[float]:
        """Times between successive chunks of text."""
        for earlier, later in zip(self.chunk_times_s, self.chunk_times_s[1:], strict=False):
            yield later - earlier


class _Failed(Exception):
    """The reply is not a whole answer."""


def read_answer(exchange: Exchange, num_input_tokens: int) -> Answer:
    """`num_input_tokens` is what was sent; the server's own count goes before it."""
    try:
        return _read(exchange, num_input_tokens)
    except _Failed as failed:
        return Answer(exchange.sent_s, (), num_input_tokens, 0, False, failure=str(failed))


def _read(exchange: Exchange, num_input_tokens: int) -> Answer:
    if exchange.failure is not None:
        raise _Failed(exchange.failure)
    if exchange.status != 200:
        raise _Failed(f"{exchange.status}: {exchange.body[:300].decode(errors='replace')}")
    times: list[float] = []
    first_choice_s: float | None = None
    usage: dict[str, Any] = {}
    for arrived_s, chunk in _chunks(exchange):
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            first_choice_s = first_choice_s or arrived_s
            if _text(choice):
                times.append(arrived_s - exchange.sent_s)
    num_output_tokens = int(usage.get("completion_tokens", len(times)))
    if not times and first_choice_s is not None and num_output_tokens:
        times.append(first_choice_s - exchange.sent_s)
    if not times:
        raise _Failed("the answer has no tokens")
    return Answer(
        sent_s=exchange.sent_s,
        chunk_times_s=tuple(times),
        num_input_tokens=int(usage.get("prompt_tokens", num_input_tokens)),
        num_output_tokens=num_output_tokens,
        is_counted_by_usage=bool(usage),
    )


def _chunks(exchange: Exchange) -> Iterator[tuple[float, dict[str, Any]]]:
    parser = SSEParser()
    for arrived_s, piece in exchange.pieces:
        for data in parser.feed(piece):
            if data == "[DONE]":
                continue
            try:
                chunk = json.loads(data)
            except ValueError:
                raise _Failed(f"an event is not JSON: {data[:200]}") from None
            if chunk.get("error") is not None:
                raise _Failed(f"the stream failed: {chunk['error']}")
            yield arrived_s, chunk


def _text(choice: dict[str, Any]) -> str | None:
    text: str | None = choice["delta"].get("content") if "delta" in choice else choice.get("text")
    return text
