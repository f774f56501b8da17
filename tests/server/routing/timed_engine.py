"""The real scheduler over steps that cost made-up time, on a clock of their own."""

from collections import deque
from types import TracebackType
from typing import Self

import msgspec

from distllm.engine.interface import ChunkOutput, StepInput, StepOutput
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import EngineRequest, SequenceOutput
from distllm.scheduler.scheduler import Scheduler
from distllm.scheduler.step_pace import StepPace
from tests.server.fake_engine import FakeEngine

STEP_S = 0.008
"""Of a step with nothing in it: reading the weights."""
DECODE_S = 0.001
PREFILL_TOKEN_S = 0.0002
FIRST_STEPS = 3
"""They take ten times as long, as the first steps of an engine do."""


class TimedEngine(FakeEngine):
    """Whoever waits for an output has steps computed. `times_s` has the time of every token by request."""

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(vocab_size=600, max_model_len=4096)
        self.now_s = 0.0
        self.times_s: dict[str, list[float]] = {}
        self.streams: dict[str, TimedStream] = {}
        self._scheduler = Scheduler(config, self.executor_info, lambda: self.now_s)
        self._pace = StepPace()
        self._pace.begin(0.0)

    def submit(self, request: EngineRequest) -> "TimedStream":  # type: ignore[override]
        if not self._scheduler.has_work:
            self._pace.begin(self.now_s)
        self._scheduler.add(request)
        self.times_s[request.request_id] = []
        self.streams[request.request_id] = TimedStream(self)
        return self.streams[request.request_id]

    def step(self) -> None:
        step = self._scheduler.schedule()
        assert step is not None
        self.now_s += _cost_s(step) * (10 if self.stats.steps_total < FIRST_STEPS else 1)
        self._pace.end_step(step, self.now_s, num_under_way=1)
        chunks = [ChunkOutput(chunk.sequence_id, 7 if chunk.sample else None) for chunk in step.chunks]
        outputs = self._scheduler.apply(step, StepOutput(step.step_id, chunks))
        self.stats = msgspec.structs.replace(self._scheduler.stats(), **self._pace.totals())
        for output in outputs:
            self.times_s[output.request_id].append(self.now_s)
            self.streams[output.request_id].outputs.append(output)


class TimedStream:
    def __init__(self, engine: TimedEngine) -> None:
        self.outputs: deque[SequenceOutput] = deque()
        self._engine = engine
        self._num_ended = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Every stream is read to its end."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        while not self.outputs:
            if not self._engine._scheduler.has_work:
                raise StopAsyncIteration
            self._engine.step()
        return self.outputs.popleft()

    def abort_sequence(self, index: int) -> None:
        raise NotImplementedError


def _cost_s(step: StepInput) -> float:
    lengths = [len(chunk.token_ids) for chunk in step.chunks]
    return STEP_S + DECODE_S * lengths.count(1) + PREFILL_TOKEN_S * sum(length for length in lengths if length > 1)
