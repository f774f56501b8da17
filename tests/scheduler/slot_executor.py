"""A fake executor that stores what it is given by physical KV slot and chooses tokens from what it reads back.

The KV of a token is a hash of the KV before it and the token; the next token is a hash of all KV. So a wrong block
table, a missing copy, a stale prefix hit or two writers in one slot change tokens, as they would in a model.
"""

from collections.abc import Sequence
from concurrent.futures import Future

from distllm.engine.interface import (
    ChunkOutput,
    ExecutorInfo,
    SequenceChunk,
    StepInput,
    StepOutput,
    TokenLogprobs,
)

VOCAB_SIZE = 997


def kv_of(previous_kv: int, token_id: int) -> int:
    return hash((previous_kv, token_id))


def next_token(kv: Sequence[int], seed: int) -> int:
    return hash((tuple(kv), seed)) % VOCAB_SIZE


def score(kv: Sequence[int]) -> float:
    return -float(hash(tuple(kv)) % 1_000_003)


def kv_of_tokens(token_ids: Sequence[int]) -> list[int]:
    """What a model without any paging would hold."""
    kv: list[int] = []
    for token_id in token_ids:
        kv.append(kv_of(kv[-1] if kv else 0, token_id))
    return kv


def executor_info(num_blocks: int, block_size: int, max_model_len: int) -> ExecutorInfo:
    return ExecutorInfo(
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        vocab_size=VOCAB_SIZE,
        model_type="fake",
        dtype="float32",
        device="cpu",
        kernels="none",
        numerics="exact",
        weight_bytes=0,
        kv_block_bytes=0,
        load_s=0.0,
    )


class SlotExecutor:
    """Runs each step when it is submitted. `failing` sequences get an error instead of a token."""

    def __init__(self, info: ExecutorInfo, max_in_flight: int = 1) -> None:
        self._info = info
        self._max_in_flight = max_in_flight
        self._kv: list[int | None] = [None] * (info.num_blocks * info.block_size)
        self.failing: set[int] = set()
        self.num_copies = 0
        self.steps: list[StepInput] = []

    @property
    def info(self) -> ExecutorInfo:
        return self._info

    @property
    def max_in_flight(self) -> int:
        return self._max_in_flight

    def submit(self, step: StepInput) -> "Future[StepOutput]":
        future: Future[StepOutput] = Future()
        future.set_result(self.execute(step))
        return future

    def close(self) -> None:
        pass

    def execute(self, step: StepInput) -> StepOutput:
        """Copies first, then all writes, then all reads."""
        self.steps.append(step)
        for copy in step.block_copies:
            self._copy_block(copy.source, copy.destination)
        for chunk in step.chunks:
            self._write(chunk)
        return StepOutput(step.step_id, [self._answer(chunk) for chunk in step.chunks])

    def _slot(self, chunk: SequenceChunk, position: int) -> int:
        block_size = self._info.block_size
        return chunk.block_table[position // block_size] * block_size + position % block_size

    def _read(self, chunk: SequenceChunk, num_tokens: int) -> list[int]:
        kv = [self._kv[self._slot(chunk, position)] for position in range(num_tokens)]
        assert None not in kv, "KV was read before it was written"
        return [value for value in kv if value is not None]

    def _copy_block(self, source: int, destination: int) -> None:
        size = self._info.block_size
        self._kv[destination * size : (destination + 1) * size] = self._kv[source * size : (source + 1) * size]
        self.num_copies += 1

    def _write(self, chunk: SequenceChunk) -> None:
        start = chunk.num_computed_before
        previous_kv = self._read(chunk, start)[-1] if start else 0
        for position, token_id in enumerate(chunk.token_ids, start):
            previous_kv = kv_of(previous_kv, token_id)
            self._kv[self._slot(chunk, position)] = previous_kv

    def _answer(self, chunk: SequenceChunk) -> ChunkOutput:
        if chunk.sequence_id in self.failing:
            return ChunkOutput(chunk.sequence_id, None, error="logits are not finite")
        kv = self._read(chunk, chunk.num_computed_before + len(chunk.token_ids))
        scores = self._score_prompt(chunk, kv)
        if chunk.sample is None:
            return ChunkOutput(chunk.sequence_id, None, prompt_logprobs=scores)
        token_id = next_token(kv, chunk.sample.seed)
        wants_logprobs = chunk.sample.params.logprobs is not None
        logprobs = TokenLogprobs(token_id, score(kv)) if wants_logprobs else None
        return ChunkOutput(chunk.sequence_id, token_id, logprobs, scores)

    def _score_prompt(self, chunk: SequenceChunk, kv: list[int]) -> tuple[TokenLogprobs, ...]:
        if chunk.prompt_logprobs is None:
            return ()
        first = chunk.num_computed_before + 1
        return tuple(
            TokenLogprobs(target_id, score(kv[:position]))
            for position, target_id in enumerate(chunk.prompt_logprobs.target_ids, first)
        )
