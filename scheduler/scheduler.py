"""Decides which tokens run next. Owns requests, sequences and the KV blocks' book-keeping; knows no tensors."""

import time
from collections.abc import Callable, Iterable
from itertools import count

from distllm.engine.interface import (
    ChunkOutput,
    ExecutorInfo,
    SequenceChunk,
    SequenceId,
    StepInput,
    StepOutput,
)
from distllm.scheduler.admission import DuplicateRequest, SequenceLimits, TooManyRequests
from distllm.scheduler.block_manager import BlockManager
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.counters import Counters
from distllm.scheduler.messages import EngineRequest, SequenceOutput
from distllm.scheduler.request import Request
from distllm.scheduler.residency import Residency
from distllm.scheduler.sequence import Sequence, Status
from distllm.scheduler.stats import EngineStats
from distllm.scheduler.step_draft import StepDraft

_SMALLEST_SHARE = 128
"""Tokens for which reading the weights takes a small part of a step."""


class Scheduler:
    """`add` and `abort` at any time; `schedule` yields steps, and each goes with its output to `apply`, in order.

    Several steps may be under way, as long as executors run them in the order in which they were scheduled.
    `clock` is compared with the requests' `arrival_s`.
    """

    def __init__(self, config: SchedulerConfig, info: ExecutorInfo, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._limits = SequenceLimits.of(info)
        self._clock = clock
        self._residency = Residency(
            BlockManager(info.num_blocks, info.block_size, config.enable_prefix_caching), config.max_num_seqs
        )
        self._requests: dict[str, Request] = {}
        self._sequences: dict[SequenceId, Sequence] = {}
        self._counters = Counters()
        self._begun: list[str] = []
        self._sequence_ids = map(SequenceId, count())
        self._step_ids = count()

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(self, message: EngineRequest) -> None:
        """Queue a request. Raises a RequestRefused that says why it cannot run here."""
        if message.request_id in self._requests:
            raise DuplicateRequest(f"request {message.request_id} is live already")
        if len(self._requests) >= self._config.max_live_requests:
            raise TooManyRequests(f"{len(self._requests)} requests are live, as many as this engine takes")
        self._limits.check(message)
        request = Request(message, self._limits.max_len, self._sequence_ids, self._clock())
        self._requests[request.request_id] = request
        self._sequences.update((sequence.sequence_id, sequence) for sequence in request.sequences.values())
        self._residency.wait(request.leader)

    def abort(self, request_id: str, indices: Iterable[int] | None = None) -> None:
        """Forget a request, or some of its sequences, and free what they hold, also while their step runs.

        Nothing more comes from them. What is not live any more is ignored.
        """
        request = self._requests.get(request_id)
        if request is None:
            return
        for index in list(request.sequences) if indices is None else indices:
            if sequence := request.sequences.get(index):
                self._end(sequence)

    def schedule(self, num_shares: int = 1) -> StepInput | None:
        """The next step; None while every sequence waits for a token, for blocks or for a seat.

        It has one of `num_shares` parts of those that can run and of the token budget, so that as many steps can be
        under way at once, and none takes much longer than the others.
        """
        num_candidates = min(len(self._sequences), self._config.max_num_seqs)
        draft = StepDraft(self._token_budget(num_shares), -(-num_candidates // num_shares))
        for sequence in self._residency.in_order():
            if draft.is_full:
                break
            if sequence.is_running or (draft.has_room(is_prompt=True) and self._admit(sequence)):
                self._give_tokens(sequence, draft)
        return draft.seal(self._step_ids)

    def take_begun(self) -> list[str]:
        """Requests of which a sequence was admitted for the first time since the last call."""
        begun, self._begun = self._begun, []
        return begun

    def apply(self, step: StepInput, output: StepOutput) -> list[SequenceOutput]:
        """Take in what a step yielded; its sequences' new tokens, and their ends."""
        assert output.step_id == step.step_id
        self._counters.steps += 1
        outputs: list[SequenceOutput] = []
        for chunk, result in zip(step.chunks, output.chunks, strict=True):
            assert result.sequence_id == chunk.sequence_id
            sequence = self._sequences.get(chunk.sequence_id)
            if sequence is not None:  # else it was aborted while the step ran
                self._settle(sequence, chunk, result, outputs)
        return outputs

    def stats(self) -> EngineStats:
        """Everything but the loop's seconds."""
        counters, blocks = self._counters, self._residency.blocks
        return EngineStats(
            num_running=self._residency.num_running,
            num_waiting=len(self._sequences) - self._residency.num_running,
            kv_cache_usage=blocks.num_used / blocks.num_blocks,
            num_blocks=blocks.num_blocks,
            num_free_blocks=blocks.num_free,
            num_cached_blocks=blocks.num_cached,
            steps_total=counters.steps,
            prompt_tokens_total=counters.prompt_tokens,
            generation_tokens_total=counters.generation_tokens,
            prefix_query_tokens_total=counters.prefix_query_tokens,
            prefix_hit_tokens_total=counters.prefix_hit_tokens,
            preemptions_total=self._residency.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError unless blocks, queues and requests agree. For tests: O(pool)."""
        live = [sequence for request in self._requests.values() for sequence in request.sequences.values()]
        assert {sequence.sequence_id: sequence for sequence in live} == self._sequences
        num_forks = sum(len(request.forks) for request in self._requests.values())
        assert num_forks == sum(sequence.status is Status.AWAITING_PROMPT for sequence in live)
        self._residency.check_integrity(live)

    def _admit(self, sequence: Sequence) -> bool:
        if not self._residency.admit(sequence):
            return False
        if sequence.num_cached_tokens is None:
            self._begun.append(sequence.request.request_id)
            num_prompt_tokens = sequence.request.num_prompt_tokens
            sequence.num_cached_tokens = min(sequence.num_computed_tokens, num_prompt_tokens)
            sequence.queue_s = max(0.0, self._clock() - sequence.request.arrival_s)
            self._counters.prefix_query_tokens += num_prompt_tokens
            self._counters.prefix_hit_tokens += sequence.num_cached_tokens
        return True

    def _token_budget(self, num_shares: int) -> int:
        """Of a step: chunks of a long prompt follow one another through the stages, if each is worth a step."""
        whole = self._config.max_num_batched_tokens
        return min(whole, max(_SMALLEST_SHARE, -(-whole // num_shares)))

    def _give_tokens(self, sequence: Sequence, draft: StepDraft) -> None:
        """As many unscheduled tokens as budget, share and blocks allow; none while its token is pending."""
        is_prompt = not sequence.has_computed_prompt
        num_wanted = min(sequence.num_unscheduled_tokens, draft.num_tokens_left)
        if num_wanted == 0 or not draft.has_room(is_prompt=is_prompt):
            return
        num_tokens, copy = self._residency.grow(sequence, num_wanted)
        if num_tokens > 0:
            draft.add(sequence.next_chunk(num_tokens), copy, is_prompt=is_prompt)
            sequence.num_scheduled_tokens += num_tokens

    def _settle(
        self, sequence: Sequence, chunk: SequenceChunk, result: ChunkOutput, outputs: list[SequenceOutput]
    ) -> None:
        if result.error is not None or (chunk.sample is not None and result.token_id is None):
            outputs.append(sequence.report_error(result.error or "the engine chose no token"))
            self._end(sequence)
            return
        self._note_computed(sequence, chunk, result)
        if result.token_id is not None:
            sequence.append(result.token_id)
            self._counters.generation_tokens += 1
        if sequence.request.forks and sequence.has_computed_prompt:
            self._fork_from(sequence, outputs)
        if result.token_id is not None:
            outputs.append(sequence.report(1, result.logprobs))
        elif sequence.finish_reason and sequence.num_computed_tokens == len(sequence.token_ids):
            outputs.append(sequence.report(0))
        else:
            return
        if sequence.finish_reason:
            self._end(sequence)

    def _note_computed(self, sequence: Sequence, chunk: SequenceChunk, result: ChunkOutput) -> None:
        assert sequence.num_computed_tokens == chunk.num_computed_before
        self._residency.note_computed(sequence, len(chunk.token_ids))
        sequence.gather_prompt_logprobs(chunk.num_computed_before, result.prompt_logprobs)
        request = sequence.request
        if not request.is_prompt_counted and sequence.has_computed_prompt:
            request.is_prompt_counted = True
            self._counters.prompt_tokens += request.num_prompt_tokens

    def _fork_from(self, leader: Sequence, outputs: list[SequenceOutput]) -> None:
        """The prompt's KV exists: the request's other sequences share it and go on from there."""
        for fork in leader.request.take_forks():
            fork.num_cached_tokens, fork.queue_s = leader.num_cached_tokens, leader.queue_s
            if fork.finish_reason:
                outputs.append(fork.report(0))
                self._end(fork)
            else:
                self._residency.fork(leader, fork)

    def _end(self, sequence: Sequence) -> None:
        """Free what the sequence holds and forget it; a fork that waited for its prompt takes over."""
        self._residency.leave(sequence)
        del self._sequences[sequence.sequence_id]
        request = sequence.request
        if successor := request.drop(sequence):
            self._residency.wait(successor)
        if not request.sequences:
            del self._requests[request.request_id]
