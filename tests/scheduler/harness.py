"""Drives a scheduler step by step over the fake executor, and says what an undisturbed run would have answered."""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

from distllm.engine.interface import ChunkOutput, StepInput, StepOutput, TokenLogprobs
from distllm.engine.sampling_params import SamplingParams, sequence_seed
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import EngineRequest, FinishReason, SequenceOutput, SequenceStart
from distllm.scheduler.scheduler import Scheduler
from tests.scheduler.slot_executor import SlotExecutor, executor_info, kv_of_tokens, next_token, score

NOW_S = 1000.0
MAX_STEPS = 5000


def make_request(
    request_id: str,
    prompt_ids: Sequence[int],
    *,
    n: int = 1,
    outputs: dict[int, list[int]] | None = None,
    seed: int = 7,
    priority: int = 0,
    arrival_s: float = 0.0,
    cache_salt: str = "",
    **params: Any,
) -> EngineRequest:
    """`n` new sequences, or those of `outputs` with the tokens that they have. `params` as in SamplingParams."""
    known = {index: list[int]() for index in range(n)} if outputs is None else outputs
    return EngineRequest(
        request_id,
        list(prompt_ids),
        SamplingParams(**params),
        seed,
        [SequenceStart(index, list(output_ids)) for index, output_ids in known.items()],
        priority,
        arrival_s,
        cache_salt,
    )


def undisturbed(
    request: EngineRequest, index: int, max_len: int, known: Sequence[int] = ()
) -> tuple[list[int], FinishReason]:
    """All output tokens of a sequence, `known` ones included, and why it ends: prompt in, token after token."""
    params, outputs = request.params, list(known)
    limit = min(max_len - len(request.prompt_ids), max_len if params.max_tokens is None else params.max_tokens)
    while len(outputs) < limit:
        kv = kv_of_tokens([*request.prompt_ids, *outputs])
        outputs.append(next_token(kv, sequence_seed(request.seed, index)))
        may_stop = len(outputs) > params.min_tokens
        if may_stop and outputs[-1] in (*params.stop_token_ids, *params.eos_token_ids):
            return outputs, "stop"
    return outputs, "length"


def prompt_scores(request: EngineRequest) -> list[TokenLogprobs]:
    kv = kv_of_tokens(request.prompt_ids)
    return [TokenLogprobs(request.prompt_ids[i], score(kv[:i])) for i in range(1, len(kv))]


class Harness:
    """Executes a step only when its output is applied, so what changes in between shows."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_model_len: int = 200,
        max_in_flight: int = 1,
        num_shares: int = 1,
        **config: Any,
    ) -> None:
        info = executor_info(num_blocks, block_size, max_model_len)
        self.now_s = NOW_S
        self.config = SchedulerConfig(**config)
        self.executor = SlotExecutor(info, max_in_flight)
        self.num_shares = num_shares
        self.scheduler = Scheduler(self.config, info, clock=lambda: self.now_s)
        self.in_flight: deque[StepInput] = deque()
        self.outputs: list[SequenceOutput] = []

    def add(self, *args: Any, **params: Any) -> EngineRequest:
        request = make_request(*args, **params)
        self.scheduler.add(request)
        self.scheduler.check_integrity()
        return request

    def abort(self, request_id: str, indices: Collection[int] | None = None) -> None:
        self.scheduler.abort(request_id, indices)
        self.scheduler.check_integrity()

    def submit(self) -> StepInput | None:
        """Schedule a step, if there may be another one under way."""
        if len(self.in_flight) == self.executor.max_in_flight:
            return None
        step = self.scheduler.schedule(self.num_shares)
        self.scheduler.check_integrity()
        if step is not None:
            self._check_step(step)
            self.in_flight.append(step)
        return step

    def finish(self, fails: Collection[int] = ()) -> list[SequenceOutput]:
        """Run the oldest step under way and apply it; its chunks numbered in `fails` end with an error."""
        step = self.in_flight.popleft()
        result = self.executor.execute(step)
        failed = [
            ChunkOutput(output.sequence_id, None, error="failed by the test") if number in fails else output
            for number, output in enumerate(result.chunks)
        ]
        outputs = self.scheduler.apply(step, StepOutput(step.step_id, failed))
        self.scheduler.check_integrity()
        self.outputs.extend(outputs)
        return outputs

    def step(self) -> StepInput:
        """One whole step, as with one in flight."""
        step = self.submit()
        assert step is not None
        self.finish()
        return step

    def run(self) -> None:
        """To the end of all work. Fails if it does not come, or if nothing can run."""
        for _ in range(MAX_STEPS):
            while self.submit() is not None:
                pass
            if self.in_flight:
                self.finish()
            else:
                assert not self.scheduler.has_work, "there is work and nothing can run"
                return
        raise AssertionError(f"no end after {MAX_STEPS} steps")

    def outputs_of(self, request_id: str, index: int = 0) -> list[SequenceOutput]:
        return [output for output in self.outputs if (output.request_id, output.index) == (request_id, index)]

    def tokens_of(self, request_id: str, index: int = 0) -> list[int]:
        return [token_id for output in self.outputs_of(request_id, index) for token_id in output.token_ids]

    def end_of(self, request_id: str, index: int = 0) -> FinishReason | None:
        """The finish reason; None while there is none. Fails if anything followed it."""
        reasons = [output.finish_reason for output in self.outputs_of(request_id, index)]
        assert all(reason is None for reason in reasons[:-1]), "an output followed the last"
        return reasons[-1] if reasons else None

    def assert_undisturbed(self, request: EngineRequest, max_len: int = 200) -> None:
        """Every sequence of the request got the tokens of an undisturbed run and its end."""
        for start in request.sequences:
            expected, reason = undisturbed(request, start.index, max_len, start.output_ids)
            assert [*start.output_ids, *self.tokens_of(request.request_id, start.index)] == expected
            assert self.end_of(request.request_id, start.index) == reason

    def _check_step(self, step: StepInput) -> None:
        """What every step owes its executor."""
        ids = [chunk.sequence_id for chunk in step.chunks]
        assert len(set(ids)) == len(ids) <= self.config.max_num_seqs
        assert 0 < step.num_tokens <= self.config.max_num_batched_tokens
        destinations = [copy.destination for copy in step.block_copies]
        assert len(set(destinations)) == len(destinations)
        for chunk in step.chunks:
            assert len(chunk.token_ids) > 0
            end = chunk.num_computed_before + len(chunk.token_ids)
            assert end <= len(chunk.block_table) * self.executor.info.block_size
