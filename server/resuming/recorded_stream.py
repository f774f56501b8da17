"""A generation's outputs on their way through a record: the known ones come first, new ones are written down.

To the generation it looks like the engine.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

from distllm.engine.pipeline.placement.routing import Route
from distllm.scheduler.client import EngineState
from distllm.scheduler.live_request import LiveRequest
from distllm.scheduler.messages import EngineRequest, SequenceOutput
from distllm.scheduler.refusals import EngineDraining, EngineUnavailable, QueueFull
from distllm.server.errors import CutByShutdown
from distllm.server.ports import OutputStream, RequestRunner, RoutedRunner

Record = Callable[[SequenceOutput], None]


class LateRunner(RoutedRunner, Protocol):
    """A RoutedRunner that may not be ready yet. `wait_ready` raises EngineUnavailable."""

    async def wait_ready(self) -> None: ...


class RecordingEngine:
    """Submits at once, and hands every output to `record` before anything is made of it."""

    def __init__(self, runner: RoutedRunner, record: Record) -> None:
        self._runner = runner
        self._record = record

    @property
    def state(self) -> EngineState:
        return self._runner.state

    @property
    def route_now(self) -> Route:
        return self._runner.route_now

    def submit(self, request: EngineRequest) -> "RecordedStream":
        return RecordedStream(self._runner, request, self._record, stream=self._runner.submit(request))


class ReplayingEngine:
    """First gives the outputs that are known, and submits what is unfinished once `runner` is ready."""

    def __init__(self, runner: LateRunner, record: Record, outputs: Iterable[SequenceOutput]) -> None:
        self._runner = runner
        self._record = record
        self._outputs: dict[str, list[SequenceOutput]] = {}
        for output in outputs:
            self._outputs.setdefault(output.request_id, []).append(output)

    @property
    def state(self) -> EngineState:
        return self._runner.state

    @property
    def route_now(self) -> Route:
        return self._runner.route_now

    def submit(self, request: EngineRequest) -> "RecordedStream":
        outputs = self._outputs.pop(request.request_id, [])
        return RecordedStream(self._runner, request, self._record, outputs, late=self._runner)


class RecordedStream:
    """The outputs of one request to `runner`: the known ones, then those of `stream`, or of what is submitted to
    `late` once it is ready."""

    def __init__(
        self,
        runner: RequestRunner,
        request: EngineRequest,
        record: Record,
        outputs: Sequence[SequenceOutput] = (),
        *,
        stream: OutputStream | None = None,
        late: LateRunner | None = None,
    ) -> None:
        self._runner = runner
        self._record = record
        self._stream = stream
        self._late = late
        self._known = LiveRequest(request)
        for output in outputs:
            self._known.accept(output)

    async def __aenter__(self) -> Self:
        if self._stream is not None:
            await self._stream.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            await self._stream.__aexit__(exc_type, exc, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        while not self._known.has_outputs and not self._known.is_finished:
            self._stream = self._stream or await self._resubmit()
            output = await self._stream.__anext__()
            if output.finish_reason not in ("abort", "error") or self.is_engine_well:
                self._record(output)
            self._known.accept(output)
        output_or_end = await self._known.next_output()
        if output_or_end is None:
            raise StopAsyncIteration
        return output_or_end

    @property
    def is_engine_well(self) -> bool:
        """Whether a request that fails does so for a reason of its own, not because the server ends."""
        return self._runner.state not in ("draining", "stopped")

    def abort_sequence(self, index: int) -> None:
        self._known.drop_sequence(index)
        if self._stream is not None:
            self._stream.abort_sequence(index)

    async def _resubmit(self) -> OutputStream:
        """Raises CutByShutdown where this server cannot go on with it and a later one can."""
        assert self._late is not None
        try:
            await self._late.wait_ready()
            stream = await self._submit_when_taken(self._known.resumption())
        except (EngineDraining, EngineUnavailable) as error:
            raise CutByShutdown(str(error)) from None
        await stream.__aenter__()
        return stream

    async def _submit_when_taken(self, request: EngineRequest) -> OutputStream:
        while True:
            try:
                return self._runner.submit(request)
            except QueueFull as full:
                await asyncio.sleep(full.retry_after_s)
