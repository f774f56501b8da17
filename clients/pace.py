"""How fast an answer came, as seen by whoever reads it."""

import time

from distllm.clients.results import Usage


class Pace:
    """The clock of one answer. Starts when it is made, which is when the request is sent."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self._first_s: float | None = None
        self._last_s = self._start_s
        self._num_chunks = 0

    def note_chunk(self) -> None:
        """A chunk with text has arrived."""
        self._last_s = time.perf_counter()
        if self._first_s is None:
            self._first_s = self._last_s
        self._num_chunks += 1

    def summary(self, usage: Usage | None) -> str:
        """One line: tokens, tokens/s after the first, time to the first. Counts chunks where usage is missing.

        Tokens that came in one piece have no time between them: they are counted from the request on.
        """
        if self._first_s is None:
            return "no tokens"
        num_tokens = usage.completion_tokens if usage else self._num_chunks
        parts = [f"{num_tokens} {'token' if num_tokens == 1 else 'tokens'}"]
        decode_s = self._last_s - self._first_s
        if self._num_chunks > 1 and decode_s > 0:
            parts.append(f"{(num_tokens - 1) / decode_s:.1f} tokens/s")
        elif num_tokens > 1:
            parts.append(f"{num_tokens / (self._last_s - self._start_s):.1f} tokens/s")
        parts.append(f"TTFT {(self._first_s - self._start_s) * 1000:.0f} ms")
        return " · ".join(parts)
