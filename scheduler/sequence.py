"""One sequence being extended: its known tokens, and how many of them have KV. It decides nothing."""

from enum import Enum, auto
from typing import TYPE_CHECKING

from distllm.engine.interface import (
    BlockId,
    PromptLogprobSpec,
    SampleSpec,
    SequenceChunk,
    SequenceId,
    TokenLogprobs,
)
from distllm.engine.sampling_params import sequence_seed
from distllm.scheduler.messages import FinishReason, SequenceOutput, SequenceStart

if TYPE_CHECKING:
    from distllm.scheduler.request import Request


class Status(Enum):
    AWAITING_PROMPT = auto()  # a fork, while another sequence of the request computes the prompt
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


class Sequence:
    """Computed tokens catch up with known ones; there is no prefill phase and no decode phase.

        token_ids:  0 ... num_computed_tokens ... num_scheduled_tokens ... len(token_ids)
                    KV exists | in a step under way      | for the next steps

    While all known tokens are computed or scheduled, the next token is pending and there is nothing to schedule.
    `finish_reason` says why the sequence is complete with the tokens it has; a complete sequence computes them and
    samples none. `rank` orders sequences: the smallest is served first and preempted last.
    """

    __slots__ = (
        "block_table",
        "borrows_last_block",
        "finish_reason",
        "has_reported",
        "index",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_scheduled_tokens",
        "prompt_logprobs",
        "queue_s",
        "rank",
        "request",
        "seed",
        "sequence_id",
        "status",
        "token_ids",
    )

    def __init__(self, sequence_id: SequenceId, request: "Request", start: SequenceStart) -> None:
        self.sequence_id = sequence_id
        self.request = request
        self.index = start.index
        self.seed = sequence_seed(request.seed, start.index)
        self.rank = (request.priority, request.arrival_s, sequence_id)
        self.status = Status.AWAITING_PROMPT
        self.token_ids = [*request.prompt_ids, *start.output_ids]
        self.num_computed_tokens = 0
        self.num_scheduled_tokens = 0
        self.block_table: list[BlockId] = []
        self.borrows_last_block = False
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if request.scores_prompt_on(start.index) else None
        self.num_cached_tokens: int | None = None  # None until the sequence has run once
        self.queue_s = 0.0
        self.has_reported = False
        self.finish_reason = self._find_finish_reason()

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.request.num_prompt_tokens

    @property
    def num_unscheduled_tokens(self) -> int:
        return len(self.token_ids) - self.num_scheduled_tokens

    @property
    def is_running(self) -> bool:
        return self.status is Status.RUNNING

    @property
    def is_in_flight(self) -> bool:
        return self.num_scheduled_tokens > self.num_computed_tokens

    @property
    def has_computed_prompt(self) -> bool:
        return self.num_computed_tokens >= self.request.num_prompt_tokens

    @property
    def needs_prompt_logprobs(self) -> bool:
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.request.num_prompt_tokens - 1

    @property
    def max_prefix_tokens(self) -> int:
        """How many first tokens the cache may serve: not the last, nor one whose successor is yet to be scored."""
        if self.prompt_logprobs is not None and self.needs_prompt_logprobs:
            return len(self.prompt_logprobs)
        return len(self.token_ids) - 1

    def start(self, block_table: list[BlockId], num_computed_tokens: int, borrows_last_block: bool = False) -> None:
        """Run with blocks that hold the first tokens already."""
        self.status = Status.RUNNING
        self.block_table = block_table
        self.num_computed_tokens = self.num_scheduled_tokens = num_computed_tokens
        self.borrows_last_block = borrows_last_block

    def stop(self, status: Status) -> None:
        """Forget the blocks, which have been released; chunks of it that are under way keep the old table."""
        self.status = status
        self.block_table = []
        self.num_computed_tokens = self.num_scheduled_tokens = 0
        self.borrows_last_block = False

    def next_chunk(self, num_tokens: int) -> SequenceChunk:
        """The next `num_tokens` unscheduled tokens, and what to sample if they are the last known ones."""
        start = self.num_scheduled_tokens
        end = start + num_tokens
        return SequenceChunk(
            self.sequence_id,
            self.token_ids[start:end],
            start,
            self.block_table,
            self._sample_spec() if end == len(self.token_ids) and self.finish_reason is None else None,
            self._prompt_logprob_spec(start, end) if self.needs_prompt_logprobs else None,
        )

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.finish_reason = self._find_finish_reason()

    def gather_prompt_logprobs(self, start: int, logprobs: tuple[TokenLogprobs, ...]) -> None:
        """Keep what a chunk from position `start` scored, less what was scored before a preemption."""
        if self.prompt_logprobs is not None and self.needs_prompt_logprobs:
            num_known = len(self.prompt_logprobs) - start
            assert num_known >= 0
            self.prompt_logprobs.extend(logprobs[num_known:])

    def report(self, num_new_tokens: int, logprobs: TokenLogprobs | None = None) -> SequenceOutput:
        """The newest tokens for the front end, with what goes with a first and with a last output."""
        finish_reason = self.finish_reason
        new_ids = self.token_ids[-num_new_tokens:] if num_new_tokens else []
        is_first = not self.has_reported
        self.has_reported = True
        return SequenceOutput(
            self.request.request_id,
            self.index,
            new_ids,
            finish_reason,
            self.token_ids[-1] if finish_reason == "stop" else None,
            None if logprobs is None else [logprobs],
            self.prompt_logprobs if is_first else None,
            self.num_cached_tokens if is_first else None,
            self.queue_s if is_first else None,
        )

    def report_error(self, error: str) -> SequenceOutput:
        self.finish_reason = "error"
        return SequenceOutput(self.request.request_id, self.index, [], "error", error=error)

    def _sample_spec(self) -> SampleSpec:
        request = self.request
        history = self.token_ids if request.needs_history else ()
        return SampleSpec(request.params, self.seed, self.num_output_tokens, history, request.num_prompt_tokens)

    def _prompt_logprob_spec(self, start: int, end: int) -> PromptLogprobSpec | None:
        target_ids = self.token_ids[start + 1 : min(end + 1, self.request.num_prompt_tokens)]
        num_top = self.request.params.prompt_logprobs
        return PromptLogprobSpec(num_top, target_ids) if num_top is not None and target_ids else None

    def _find_finish_reason(self) -> FinishReason | None:
        request, num_outputs = self.request, self.num_output_tokens
        if num_outputs > request.params.min_tokens and self.token_ids[-1] in request.stop_ids:
            return "stop"
        return "length" if num_outputs >= request.max_output_tokens else None
