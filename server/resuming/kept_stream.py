"""One resumable stream: its events so far, and those who read them. It goes on when nobody does, for a time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from distllm.scheduler.latest import Latest
from distllm.scheduler.messages import SequenceOutput
from distllm.server.errors import InvalidRequest
from distllm.server.resuming.event_id import HEADER, REMEDY, EventId
from distllm.server.resuming.stream_head import StreamHead
from distllm.server.resuming.stream_log import StreamFile
from distllm.server.streaming import Event

EVENT_OVERHEAD_BYTES = 160
"""What an event takes beside its data: a tuple, two numbers, the object of its bytes, a place in a list."""


class NotKept(Exception):
    """A stream cannot be resumed; the message says why."""


class KeptEvent(NamedTuple):
    """`number` counts the events of `choice` from 1."""

    choice: int
    number: int
    data: bytes


class KeptStream:
    """Whoever makes the events adds them and says when it has ended; any number of readers follow.

    `on_abandoned` is called once nobody has read for `grace_s`, which is counted from `expect_reader` on. A stream
    that is not kept any more goes on for those that read it, and holds what they have yet to read.
    """

    def __init__(
        self,
        head: StreamHead,
        file: StreamFile | None,
        grace_s: float,
        on_abandoned: "Callable[[KeptStream], None]",
        *,
        is_restored: bool = False,
    ) -> None:
        self.head = head
        self.file = file
        self.is_kept = True
        self.is_ended = False
        self.num_bytes = 0
        self._grace_s = grace_s
        self._on_abandoned = on_abandoned
        self._is_restored = is_restored
        self._unwritten: list[SequenceOutput] = []
        self._awaits_file = False
        self._events: list[KeptEvent] = []
        self._num_forgotten = 0
        self._counts = [0] * head.num_choices
        self._num_events = Latest(0)
        self._readers: set[Reader] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def owner(self) -> str:
        """The digest of the key that began it, "" where none is asked for."""
        return self.head.owner

    @property
    def is_read(self) -> bool:
        return bool(self._readers)

    async def write_to(self, file: Awaitable[StreamFile | None]) -> None:
        """Have outputs written to a file that is yet to be made; they may come before it is there."""
        self._awaits_file = True
        self.file = await file
        self._awaits_file = False
        for output in self._unwritten:
            self.record(output)
        self._unwritten.clear()

    def record(self, output: SequenceOutput) -> None:
        """Write an output of the engine down, before its events are made."""
        if self._awaits_file:
            self._unwritten.append(output)
        elif self.file is not None:
            self.file.append(output)

    def add(self, events: Sequence[Event]) -> int:
        """The next events, in any order of choices. Returns the bytes that they take."""
        num_bytes = 0
        for choice, data in events:
            self._counts[choice] += 1
            self._events.append(KeptEvent(choice, self._counts[choice], data))
            num_bytes += len(data) + EVENT_OVERHEAD_BYTES
        self.num_bytes += num_bytes
        self._num_events.replace(self._num_forgotten + len(self._events))
        return num_bytes

    def end(self) -> None:
        """Nothing more is added: readers come to an end."""
        self.is_ended = True
        self._num_events.close()
        if self.file is not None:
            self.file.close()

    def unkeep(self) -> None:
        """It can no longer be resumed."""
        self.is_kept = False
        self._stop_timer()
        self._forget_what_was_read()
        if not self._readers:
            self._on_abandoned(self)

    def expect_reader(self) -> None:
        """Count the grace time from now, unless somebody reads."""
        self._stop_timer()
        if not self._readers:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._grace_s, self._on_abandoned, self)

    def check(self, counts: tuple[int, ...]) -> None:
        """Raises InvalidRequest for counts of another stream, or of events that there are not yet.

        After a power failure a client may have had events that are still to be computed again.
        """
        if len(counts) != len(self._counts):
            raise InvalidRequest(
                f"{HEADER} must count {len(self._counts)} choices, as this stream has; {REMEDY}", HEADER
            )
        is_early = any(given > made for given, made in zip(counts, self._counts, strict=True))
        if is_early and (self.is_ended or not self._is_restored):
            raise InvalidRequest(f"{HEADER} names an event that this stream has not sent; {REMEDY}", HEADER)

    def is_read_whole(self, counts: tuple[int, ...]) -> bool:
        """Whether nothing follows those events."""
        return self.is_ended and counts == tuple(self._counts)

    def reader(self, counts: tuple[int, ...]) -> "Reader":
        """To read what follows those events, which `check` has passed."""
        return Reader(self, counts)

    def join(self, reader: "Reader") -> None:
        self._stop_timer()
        self._readers.add(reader)

    def leave(self, reader: "Reader") -> None:
        self._readers.discard(reader)
        if self.is_kept:
            self.expect_reader()
        elif not self._readers:
            self._on_abandoned(self)

    async def batches(self, reader: "Reader") -> AsyncIterator[Sequence[KeptEvent]]:
        """The events from a reader's place on, which it moves, until the stream ends."""
        async for num_events in self._num_events.follow():
            first = reader.place - self._num_forgotten
            reader.place = num_events
            yield self._events[first : num_events - self._num_forgotten]
            if not self.is_kept:
                self._forget_what_was_read()

    def _forget_what_was_read(self) -> None:
        place = min((reader.place for reader in self._readers), default=self._num_events.value)
        del self._events[: max(0, place - self._num_forgotten)]
        self._num_forgotten = max(place, self._num_forgotten)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Reader:
    """One connection's reading of a stream, within its block. `place` counts the events that it has passed."""

    def __init__(self, stream: KeptStream, counts: tuple[int, ...]) -> None:
        self.place = 0
        self._stream = stream
        self._counts = list(counts)

    async def __aenter__(self) -> Self:
        self._stream.join(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.leave(self)

    async def frames(self) -> AsyncIterator[bytes]:
        """The events that its client does not have, as they are sent."""
        async for events in self._stream.batches(self):
            if frames := [self._frame(event) for event in events if event.number > self._counts[event.choice]]:
                yield b"".join(frames)

    def _frame(self, event: KeptEvent) -> bytes:
        self._counts[event.choice] = event.number
        event_id = EventId(self._stream.head.request_id, tuple(self._counts))
        return b"id: %s\ndata: %s\n\n" % (str(event_id).encode(), event.data)
