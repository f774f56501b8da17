"""What the scheduler asks of an executor and what it gets back: plain values, no tensors.

Knows nothing of requests, text or devices. Importable without torch.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NewType, Protocol

from distllm.engine.sampling_params import SamplingParams

SequenceId = NewType("SequenceId", int)
BlockId = NewType("BlockId", int)

BLOCK_SIZE = 16
"""Tokens whose KV one block holds, for all layers of a stage."""


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How to choose the token that follows a chunk.

    `index` counts the sequence's output tokens so far, so the random number of a token is a function of
    (`seed`, `index`) alone. `history` holds every known token, prompt first, where `params` penalise
    repetition; it is empty otherwise.
    """

    params: SamplingParams
    seed: int
    index: int
    history: Sequence[int] = ()
    num_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PromptLogprobSpec:
    """Which known next tokens of a chunk to score: `target_ids[i]` follows the chunk's token i."""

    num_top: int
    target_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """The slice of one sequence that a step computes.

        position:   0 ........ num_computed_before ........ num_computed_before + len(token_ids)
                    KV already in the block table | token_ids, computed by this step

    `block_table` covers every position up to the end of the chunk. `sample` is None while the chunk does not
    reach the end of the known tokens.
    """

    sequence_id: SequenceId
    token_ids: Sequence[int]
    num_computed_before: int
    block_table: Sequence[BlockId]
    sample: SampleSpec | None
    prompt_logprobs: PromptLogprobSpec | None = None


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy one block's KV in every layer, before the step runs (copy-on-write after a fork)."""

    source: BlockId
    destination: BlockId


@dataclass(frozen=True, slots=True)
class StepInput:
    """One forward pass over a mixed batch of prefill and decode chunks, in the order of `chunks`."""

    step_id: int
    chunks: Sequence[SequenceChunk]
    block_copies: Sequence[BlockCopy] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability (natural, of the model's raw distribution) of one token and of the most likely ones.

    `top_ids` are in falling order of probability, ties by smaller id; as many as were asked for.
    """

    token_id: int
    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkOutput:
    """What one chunk yielded. `token_id` is None when nothing was sampled or `error` says why it could not be."""

    sequence_id: SequenceId
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One ChunkOutput for each chunk of the step, in the same order."""

    step_id: int
    chunks: Sequence[ChunkOutput]


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """What an executor turned out to be once its model was loaded.

    `kernels` names what runs attention and linear layers; `numerics` identifies the summing order, so that two
    executors with equal `numerics` give equal bits. `num_ranks` share weights and KV; bytes are those of all.
    `streamed_bytes` of `weight_bytes` are brought in by every step from where they are offloaded.
    """

    num_blocks: int
    block_size: int
    max_model_len: int
    vocab_size: int
    model_type: str
    dtype: str
    device: str
    kernels: str
    numerics: str
    weight_bytes: int
    kv_block_bytes: int
    load_s: float
    streamed_bytes: int = 0
    num_ranks: int = 1


class Executor(Protocol):
    """Runs steps. `submit` returns at once or after the step; up to `max_in_flight` steps may be under way.

    The running sequences are divided among as many steps, for those that wait for a token cannot be in another.
    """

    @property
    def info(self) -> ExecutorInfo: ...

    @property
    def max_in_flight(self) -> int: ...

    def submit(self, step: StepInput) -> "Future[StepOutput]": ...

    def close(self) -> None: ...
