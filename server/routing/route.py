"""A route: an engine under its name, how fast it is and what it has to do."""

import heapq
from collections.abc import Callable
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
    """`max_running` sequences run at once, and `max_live` may run or wait. A step has `token_budget` tokens."""

    def __init__(self, name: Route, engine: Engine, max_running: int, max_live: int, token_budget: int) -> None:
        self.name = name
        self.engine = engine
        self.pace = Pace(engine.stats)
        self.streams: dict[MeasuredStream, None] = {}  # in the order in which they came
        self.max_running = max_running
        self._max_live = max_live
        self._token_budget = token_budget
        self._num_prefilled_before = 0

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
        """Of prompts that have no first token yet, without what has been computed of the one that comes next."""
        num_computed = max(0, self.engine.stats.prefill_tokens_total - self._num_prefilled_before)
        return max(0, sum(stream.pending_tokens for stream in self.streams) - num_computed)

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
        """What it would do for one more request, whose prompts are computed after those that came before."""
        queue_s = self._computed_after_s(self.pending_tokens)
        own_s = self._computed_after_s(self.pending_tokens + size.prompt_tokens) - queue_s
        return RouteState(
            route=self.name,
            prefill_tokens_per_s=size.prompt_tokens / own_s,
            tpot_s=self._tpot_s(self.num_live + size.num_sequences),
            queue_s=queue_s,
            num_machines=self.num_machines,
            unavailable=self.refusal(size),
        )

    def begin_prompt(self) -> None:
        """What the engine computes of prompts from now on is of the one that comes next."""
        self._num_prefilled_before = self.engine.stats.prefill_tokens_total

    def note_stats(self) -> None:
        """Take in what the engine has reported last."""
        self.pace.note(self.engine.stats)

    def forget_pace(self) -> None:
        """It runs on other machines now."""
        self.pace = Pace(self.engine.stats)

    def submit(
        self,
        request: EngineRequest,
        is_pinned: bool = False,
        on_move: Callable[[Route], None] = lambda _: None,
    ) -> MeasuredStream:
        """As Engine.submit, measured."""
        if self.pending_tokens == 0:
            self.begin_prompt()
        stream = MeasuredStream(self, request, self.engine.submit(request), is_pinned, on_move)
        self.streams[stream] = None
        return stream

    def _tpot_s(self, num_sequences: int) -> float:
        """Of each where so many run, or as many of them as can."""
        return self.pace.tpot_s(min(num_sequences, self.max_running)) or UNMEASURED_TPOT_S

    def _computed_after_s(self, num_prompt_tokens: int) -> float:
        """Until there is a place for one more sequence, and so many tokens of prompts are computed.

        The prompts take their own time, and beside them every full step that of the sequences that run. These take
        a token each of its budget, become more as prompts are done, and have in the same steps the tokens for which
        those that wait for a place have to wait.
        """
        num_ahead = self._tokens_ahead()
        num_running = sum(stream.num_running for stream in self.streams)
        num_decodes = self.max_running if num_ahead else min((num_running + self.num_live) // 2, self.max_running)
        num_full_steps = max(0, num_prompt_tokens - 1) // max(1, self._token_budget - num_decodes)
        tokens_per_s = self.pace.prefill_tokens_per_s or UNMEASURED_PREFILL_TOKENS_PER_S
        return num_prompt_tokens / tokens_per_s + max(num_full_steps, num_ahead) * self._tpot_s(max(1, num_decodes))

    def _tokens_ahead(self) -> float:
        """How many tokens those that run will have had when there is a place for one more; they begin in order."""
        said_part = self.pace.said_part
        ends: list[float] = []
        for stream in self.streams:
            for num_tokens in stream.remaining(said_part):
                begin = heapq.heappop(ends) if len(ends) == self.max_running else 0.0
                heapq.heappush(ends, begin + num_tokens)
        return ends[0] if len(ends) == self.max_running else 0.0
