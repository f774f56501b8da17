"""What has happened in the cluster, for people: joins, losses, recoveries."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable

from distllm.engine.pipeline.coordinator.event_file import EventFile
from distllm.engine.pipeline.coordinator.snapshot import ClusterEvent, EventKind

_MAX_EVENTS = 100
_MAX_TEXT_LEN = 300
_LONGEST_WORD = 40


class EventLog:
    """The latest events, after `earlier` ones, the oldest first. Belongs to one event loop."""

    def __init__(self, earlier: Iterable[ClusterEvent] = ()) -> None:
        self._events: deque[ClusterEvent] = deque(earlier, maxlen=_MAX_EVENTS)
        self._has_news = asyncio.Event()
        self._has_unwritten = asyncio.Event()
        self.recoveries_total = 0
        self.recovery_s_total = 0.0
        self.last_recovery_s: float | None = None

    def note(self, kind: EventKind, text: str, peer_id: str | None = None) -> None:
        """`text` may be a peer's words: what is too long or no text is left out."""
        self._add(ClusterEvent(time.time(), kind, printable(text), peer_id))

    def note_recovery(self, text: str, duration_s: float) -> None:
        self.recoveries_total += 1
        self.recovery_s_total += duration_s
        self.last_recovery_s = duration_s
        self._add(ClusterEvent(time.time(), "recovered", printable(text), duration_ms=1000 * duration_s))

    def recent(self) -> list[ClusterEvent]:
        """The newest first."""
        return list(reversed(self._events))

    async def wait_for_news(self, timeout_s: float) -> None:
        """Return when something has happened since this last returned, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_news.wait(), timeout_s)
        self._has_news.clear()

    async def keep(self, file: EventFile, pause_s: float = 1.0) -> None:
        """Write all of them whenever some have come, for ever, with pauses: strangers can cause events."""
        while True:
            await self._has_unwritten.wait()
            self._has_unwritten.clear()
            await asyncio.to_thread(file.write, list(self._events))
            await asyncio.sleep(pause_s)

    def _add(self, event: ClusterEvent) -> None:
        self._events.append(event)
        self._has_news.set()
        self._has_unwritten.set()


def printable(text: str, max_len: int = _MAX_TEXT_LEN) -> str:
    """A short line of somebody else's text, which ends with a whole word where it was longer."""
    return "".join(letter if letter.isprintable() else " " for letter in _cut(text, max_len))


def _cut(text: str, max_len: int) -> str:
    """Where it is too long, up to a space that is not far from the end."""
    if len(text) <= max_len:
        return text
    start = text[: max_len - 2]
    whole, space, rest = start.rpartition(" ")
    return f"{whole if space and len(rest) < _LONGEST_WORD else start} …"
