"""Runs one step: block copies, one forward pass over all chunks, then sampling and prompt log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.forward import Forward
from distllm.engine.interface import (
    ChunkOutput,
    PromptLogprobSpec,
    SampleSpec,
    SequenceChunk,
    StepInput,
    StepOutput,
    TokenLogprobs,
)
from distllm.engine.sampling.candidates import num_candidates
from distllm.engine.sampling.logprobs import NonFiniteLogits, prompt_logprobs
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.sampling.sampler import SampledToken, Sampler


@dataclass(frozen=True, slots=True)
class NeededRows:
    """Rows of the batch whose logits a step reads.

    rows:  | those of `scored` chunks | of `sampled` chunks: all logits read | `num_candidates` of each read |

    `scored` names the chunks with prompt log-probabilities; each has as many rows as it has target ids.
    """

    rows: list[int]
    scored: list[int]
    sampled: list[int]
    num_candidates: list[int]


class ModelRunner:
    """Runs steps over a forward pass. Not thread-safe."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self._sampler = Sampler()

    @torch.inference_mode()
    def run(self, step: StepInput) -> StepOutput:
        """Compute every chunk of the step and choose the tokens that it asks for."""
        needed = find_needed_rows(step.chunks)
        batch = build_step_tensors(step.chunks, needed.rows, step.block_copies, needed.num_candidates)
        logits = self.forward.needed(batch)
        num_scored = len(needed.rows) - len(needed.sampled)
        scores = _score_prompts(logits.whole[:num_scored], step.chunks, needed.scored)
        specs = [_sample_spec(step.chunks[index]) for index in needed.sampled]
        sampled = self._sample(NeededLogits(logits.whole[num_scored:], logits.best), specs)
        tokens = dict(zip(needed.sampled, sampled, strict=True))
        outputs = [
            _output(chunk, tokens.get(index), scores.get(index, ())) for index, chunk in enumerate(step.chunks)
        ]
        return StepOutput(step.step_id, outputs)

    def _sample(self, logits: NeededLogits, specs: Sequence[SampleSpec]) -> list[SampledToken]:
        """A token for each row, those of which all is read first."""
        num_whole = len(logits.whole)
        tokens = self._sampler.sample(logits.whole, specs[:num_whole])
        if logits.best is not None:
            tokens += self._sampler.sample_candidates(logits.best, specs[num_whole:])
        return tokens


def find_needed_rows(chunks: Sequence[SequenceChunk]) -> NeededRows:
    """Which rows of the flattened batch must go through the output head, and how much of each is read."""
    scored, whole, listed = _Rows(), _Rows(), _Rows()
    counts: list[int] = []
    start = 0
    for index, chunk in enumerate(chunks):
        end = start + len(chunk.token_ids)
        if chunk.sample is not None:
            count = num_candidates(chunk.sample)
            if count is None:
                whole.add(index, end - 1, end)
            else:
                listed.add(index, end - 1, end)
                counts.append(count)
        if chunk.prompt_logprobs is not None and chunk.prompt_logprobs.target_ids:
            scored.add(index, start, start + len(chunk.prompt_logprobs.target_ids))
        start = end
    rows = scored.rows + whole.rows + listed.rows
    return NeededRows(rows, scored.chunks, whole.chunks + listed.chunks, counts)


class _Rows:
    """Rows that are read in one way, and the chunks whose they are."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.chunks: list[int] = []

    def add(self, chunk: int, start: int, stop: int) -> None:
        self.chunks.append(chunk)
        self.rows.extend(range(start, stop))


def _score_prompts(
    logits: Tensor, chunks: Sequence[SequenceChunk], scored: Sequence[int]
) -> dict[int, tuple[TokenLogprobs, ...] | NonFiniteLogits]:
    """Prompt log-probabilities by chunk, or why there are none; logits [rows of all scored chunks, vocab_size]."""
    scores: dict[int, tuple[TokenLogprobs, ...] | NonFiniteLogits] = {}
    start = 0
    for index in scored:
        spec = _prompt_spec(chunks[index])
        end = start + len(spec.target_ids)
        try:
            scores[index] = tuple(prompt_logprobs(logits[start:end], spec.target_ids, spec.num_top))
        except NonFiniteLogits as error:
            scores[index] = error
        start = end
    return scores


def _output(
    chunk: SequenceChunk, token: SampledToken | None, scores: tuple[TokenLogprobs, ...] | NonFiniteLogits
) -> ChunkOutput:
    if isinstance(scores, NonFiniteLogits):
        return ChunkOutput(chunk.sequence_id, None, error=str(scores))
    if token is None:
        return ChunkOutput(chunk.sequence_id, None, prompt_logprobs=scores)
    return ChunkOutput(chunk.sequence_id, token.token_id, token.logprobs, scores, token.error)


def _sample_spec(chunk: SequenceChunk) -> SampleSpec:
    assert chunk.sample is not None
    return chunk.sample


def _prompt_spec(chunk: SequenceChunk) -> PromptLogprobSpec:
    assert chunk.prompt_logprobs is not None
    return chunk.prompt_logprobs
