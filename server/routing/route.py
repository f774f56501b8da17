"""A route: an engine under its name, how fast it is and what it has to do."""

import heapq
from dataclasses import dataclass

from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.placement.routing import Route, RouteState
from distllm.scheduler.client import EngineState
from distllm.scheduler.messages import EngineRequest
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.generation_plan import Limits
from distllm.server.ports import Engine
from distllm.server.routing.measured_stream import MeasuredStream
from distllm.server.routing.pace import Pace

UNMEASURED_TPOT_S = 0.05
UNMEASURED_PREFILL_TOKENS_PER_S = 1000.0
"""What a route is taken to do until its first probe has ended."""

_STALL_S = 30.0
"""An engine that computes one step for so long gets no further requests while there is another."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much a request asks for: tokens of all its prompts, the longest answer and sequence, and sequences."""

    prompt_tokens: int
    max_new_tokens: int
    max_len: int
    num_sequences: int


class EngineRoute:
    """`max_running` sequences run at once, and `max_live` may run or wait."""

    def __init__(self, name: Route, engine: Engine, max_running: int, max_live: int) -> None:
        self.name = name
        self.engine = engine
        self.pace = Pace(engine.stats)
        self.streams: dict[MeasuredStream, None] = {}  # in the order in which they came
        self.max_running = max_running
        self._max_live = max_live

    @property
    def info(self) -> ExecutorInfo:
        """Raises EngineUnavailable."""
        return self.engine.info

    @property
    def numerics(self) -> str | None:
        """Routes whose sums have the same order give the same tokens; None before the model is loaded."""
        try:
            return self.engine.info.numerics
        except EngineUnavailable:
            return None

    @property
    def state(self) -> EngineState:
        return self.engine.state

    @property
    def num_machines(self) -> int:
        """That are busy with a request: the stages of a pipeline, or this one."""
        cluster = self.engine.cluster.value
        return 1 if cluster is None else max(1, len(cluster.stages))

    @property
    def num_live(self) -> int:
        """Sequences that run or wait."""
        return sum(stream.num_unfinished for stream in self.streams)

    @property
    def pending_tokens(self) -> int:
        """Of prompts that have no first token yet."""
        return sum(stream.pending_tokens for stream in self.streams)

    @property
    def unavailable(self) -> str | None:
        """Why it makes no progress at present."""
        cluster = self.engine.cluster.value
        reasons = (self.engine.failure, None if cluster is None else cluster.waiting)
        return "; ".join(reason for reason in reasons if reason is not None) or None

    @property
    def takes_requests(self) -> bool:
        """Whether it has the request run in the end, if perhaps not now."""
        return self.engine.state in ("ready", "restarting")

    def max_len(self) -> int:
        """Tokens of the longest sequence. Raises EngineUnavailable."""
        return Limits.of(self.info).max_model_len

    def misfit(self, size: Size) -> str | None:
        """Why it can never run a request of this size. Raises EngineUnavailable."""
        if size.max_len <= (most := self.max_len()):
            return None
        return f"it takes {most} tokens a sequence, and this request may have {size.max_len}"

    def refusal(self, size: Size) -> str | None:
        """Why it cannot run a request of this size now."""
        if (reason := self.unavailable) is not None:
            return reason
        if (reason := self.misfit(size)) is not None:
            return reason
        if (stalled_s := self.engine.seconds_since_progress) > _STALL_S:
            return f"it has not finished a step for {stalled_s:.0f} s"
        if (num_live := self.num_live) >= self._max_live:
            return f"its queue is full, with {num_live} sequences"
        return None

    def route_state(self, size: Size) -> RouteState:
        """What it would do for one more request."""
        num_after = min(self.num_live + size.num_sequences, self.max_running)
        tpot_s = self.pace.tpot_s(num_after) or UNMEASURED_TPOT_S
        prefill_tokens_per_s = self.pace.prefill_tokens_per_s or UNMEASURED_PREFILL_TOKENS_PER_S
        return RouteState(
            route=self.name,
            prefill_tokens_per_s=prefill_tokens_per_s,
            tpot_s=tpot_s,
            queue_s=self.pending_tokens / prefill_tokens_per_s + self._tokens_ahead() * tpot_s,
            num_machines=self.num_machines,
            unavailable=self.refusal(size),
        )

    def note_stats(self) -> None:
        """Take in what the engine has reported last."""
        self.pace.note(self.engine.stats)

    def forget_pace(self) -> None:
        """It runs on other machines now."""
        self.pace = Pace(self.engine.stats)

    def submit(self, request: EngineRequest, is_pinned: bool = False) -> MeasuredStream:
        """As Engine.submit, measured."""
        stream = MeasuredStream(self, request, self.engine.submit(request), is_pinned)
        self.streams[stream] = None
        return stream

    def _tokens_ahead(self) -> float:
        """How many tokens those that run will have had when there is a place for one more; they begin in order."""
        said_part = self.pace.said_part
        ends: list[float] = []
        for stream in self.streams:
            for num_tokens in stream.remaining(said_part):
                begin = heapq.heappop(ends) if len(ends) == self.max_running else 0.0
                heapq.heappush(ends, begin + num_tokens)
        return ends[0] if len(ends) == self.max_running else 0.0
