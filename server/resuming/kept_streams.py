"""All resumable streams of a server: begins, finds, bounds and ends them; restores those of before a restart."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import msgspec

from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.answer_head import AnswerHead, Endpoint
from distllm.server.errors import CutByShutdown, StreamNotFound
from distllm.server.generation import Generation
from distllm.server.handlers.chat_chunks import ChatChunks
from distllm.server.handlers.completion_chunks import CompletionChunks
from distllm.server.metrics import Metrics
from distllm.server.ports import EngineView, RoutedRunner
from distllm.server.resuming.event_id import MAX_COUNTS
from distllm.server.resuming.fair_share import bytes_of, next_to_go, one
from distllm.server.resuming.kept_stream import KeptStream, NotKept
from distllm.server.resuming.late_routing import LateRouting
from distllm.server.resuming.recorded_stream import RecordingEngine, ReplayingEngine
from distllm.server.resuming.stream_head import StreamHead
from distllm.server.resuming.stream_log import LoggedStream, StreamLog
from distllm.server.routing.forecast import Forecast
from distllm.server.routing.router import Router, Routing
from distllm.server.settings import ResumeSettings
from distllm.server.streaming import Chunks, events
from distllm.server.tokenizer import Tokenizer

logger = logging.getLogger("distllm.server")

_CHUNKS: dict[Endpoint, Callable[[Generation, Tokenizer, AnswerHead], Chunks]] = {
    "completions": CompletionChunks,
    "chat": ChatChunks,
}


@dataclass(slots=True)
class Counts:
    """Since the server's start. `resumed` counts clients that came back, the others streams."""

    resumed: int = 0
    restored: int = 0
    expired: int = 0
    unkept: int = 0


class KeptStreams:
    """Within its block the streams of `log` go on that a server left unfinished; leaving it ends the work for all,
    and leaves the files to the next server.

    Where room is wanted the key that holds most gives way, as `fair_share.py` has it.
    """

    def __init__(
        self,
        settings: ResumeSettings,
        engine: EngineView,
        router: Router,
        tokenizer: Tokenizer,
        metrics: Metrics,
        model_name: str,
        log: StreamLog | None = None,
    ) -> None:
        self.settings = settings
        self.counts = Counts()
        self.num_bytes = 0
        self._engine = engine
        self._router = router
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._model_name = model_name
        self._log = log
        self._streams: dict[str, KeptStream] = {}  # oldest first
        self._tasks: dict[KeptStream, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def num_kept(self) -> int:
        return len(self._streams)

    @property
    def num_log_bytes(self) -> int:
        return 0 if self._log is None else self._log.num_bytes

    async def __aenter__(self) -> Self:
        while self._log is not None and self._log.logged:
            self._restore(self._log.logged.pop(0))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks = [*self._tasks.values(), *self._ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def begin(self, head: StreamHead, routing: Routing) -> KeptStream:
        """Start a stream that can be resumed. Raises NotKept, and what Generation.start raises."""
        self._check_room(head)
        stream = self._keep(head)
        generation = self._generation(head, RecordingEngine(routing, stream.record), routing.forecast)
        try:
            await self._start(stream, generation)
        except BaseException:
            self.remove(stream)
            raise
        self._tasks[stream] = asyncio.create_task(self._drive(stream, generation), name=head.request_id)
        stream.expect_reader()
        return stream

    def find(self, request_id: str, owner: str) -> KeptStream:
        """Raises StreamNotFound, also where another key has begun it."""
        stream = self._streams.get(request_id)
        if stream is None or stream.head.owner != owner:
            raise StreamNotFound(request_id)
        return stream

    def remove(self, stream: KeptStream) -> None:
        """End a stream, whether or not it has ended, and forget it."""
        self._forget(stream)
        if task := self._tasks.pop(stream, None):
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        stream.end()

    async def _start(self, stream: KeptStream, generation: Generation) -> None:
        """Start a generation and, where there is a log, wait until its stream is on disk."""
        await generation.start()
        try:
            if self._log is not None:  # nothing may be awaited before: outputs can come from now on
                await stream.write_to(asyncio.to_thread(self._log.begin, stream.head))
        except BaseException:
            await generation.__aexit__(None, None, None)
            raise

    def _restore(self, logged: LoggedStream) -> None:
        """Go on with a stream of before a restart. What was said is said again at once, for any place."""
        head = logged.head
        if not self._make_room(head.owner):
            self.counts.unkept += 1
            logged.file.remove()
            return
        self.counts.restored += 1
        stream = self._keep(head, logged)
        late = LateRouting(self._engine, self._router, head, self._model_name)
        runner = ReplayingEngine(late, stream.record, logged.outputs)
        generation = self._generation(head, runner, Forecast(head.route, "restored", "it was sent there before"))
        self._tasks[stream] = asyncio.create_task(self._drive_again(stream, generation), name=head.request_id)

    def _generation(self, head: StreamHead, runner: RoutedRunner, forecast: Forecast) -> Generation:
        return Generation(
            runner,
            forecast,
            self._tokenizer,
            self._metrics,
            head.plan,
            head.request_id,
            head.seeds,
            head.arrival_s,
        )

    def _keep(self, head: StreamHead, logged: LoggedStream | None = None) -> KeptStream:
        file = None if logged is None else logged.file
        stream = KeptStream(head, file, self.settings.grace_s, self._on_abandoned, is_restored=logged is not None)
        stream.num_bytes = len(msgspec.msgpack.encode(head))
        self.num_bytes += stream.num_bytes
        self._streams[head.request_id] = stream
        return stream

    async def _drive_again(self, stream: KeptStream, generation: Generation) -> None:
        await generation.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._expect_reader_once_ready(stream))
            await self._drive(stream, generation)

    async def _expect_reader_once_ready(self, stream: KeptStream) -> None:
        """How long the server was away does not count as time in which its client could have come back."""
        with contextlib.suppress(EngineUnavailable):
            await self._engine.wait_ready()
        stream.expect_reader()

    async def _drive(self, stream: KeptStream, generation: Generation) -> None:
        """Make the events of a started generation. Where the server ends before it does, the next one goes on."""
        chunks = _CHUNKS[stream.head.endpoint](generation, self._tokenizer, stream.head.answer)
        try:
            async with generation:
                async for batch in events(generation, chunks, partial(_is_final, stream)):
                    self._on_growth(stream, stream.add(batch))
        except CutByShutdown:
            return
        finally:
            stream.end()

    def _on_growth(self, stream: KeptStream, num_bytes: int) -> None:
        if not stream.is_kept:
            return
        self.num_bytes += num_bytes
        while self.num_bytes > self.settings.max_bytes and stream.is_kept:
            self._give_up(next_to_go(self._streams.values(), stream.owner, 0, bytes_of) or stream)

    def _check_room(self, head: StreamHead) -> None:
        """Make room for one more. Raises NotKept."""
        reason = None
        if head.num_choices > MAX_COUNTS:
            reason = f"it has {head.num_choices} choices, and ids of events count {MAX_COUNTS} at most"
        elif not self._make_room(head.owner):
            reason = "this server has no room for one more resumable stream of this key"
        if reason is not None:
            self.counts.unkept += 1
            raise NotKept(reason)

    def _make_room(self, owner: str) -> bool:
        while (is_full := self.num_kept >= self.settings.max_streams) or self.num_bytes > self.settings.max_bytes:
            asked, size = (1, one) if is_full else (0, bytes_of)
            going = next_to_go(self._streams.values(), owner, asked, size)
            if going is None:
                return False
            self._give_up(going)
        return True

    def _give_up(self, stream: KeptStream) -> None:
        """Remove what has ended and is not read; any other goes on for those that read it, as an ordinary one."""
        if stream.is_ended and not stream.is_read:
            self.remove(stream)
        else:
            self.counts.unkept += 1
            self._forget(stream)
            stream.unkeep()

    def _on_abandoned(self, stream: KeptStream) -> None:
        self.counts.expired += not stream.is_ended
        self.remove(stream)

    def _forget(self, stream: KeptStream) -> None:
        """It cannot be found any more."""
        if self._streams.pop(stream.head.request_id, None) is not None:
            self.num_bytes -= stream.num_bytes
        if stream.file is not None:
            stream.file.remove()


def _is_final(stream: KeptStream, failure: Exception) -> bool:
    """Whether a failure ends the stream; the end of this server does not where the next one has its file."""
    return not isinstance(failure, CutByShutdown) or stream.file is None or not stream.is_kept
