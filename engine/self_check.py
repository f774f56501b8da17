"""Compares the paged forward of a loaded model with transformers' own before the first request.

A few tokens go through in steps of mixed chunks of two sequences, so that wrong positions, state kept outside the
cache, or a module replaced wrongly all show.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distllm.engine.batch import build_step_tensors
from distllm.engine.forward import ModelForward
from distllm.engine.injection.attention import ATTENTION_NAME
from distllm.engine.injection.probe import refusal
from distllm.engine.interface import BlockId, SequenceChunk, SequenceId

logger = logging.getLogger("distllm.engine")

NUM_BLOCKS = 2
"""Blocks that the check needs, one for each of its sequences."""

_SEQUENCES = ([3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1, 8, 2, 8, 1, 8, 2])
_STEPS = (((0, 4), (0, 1)), ((4, 5), (1, 6)), ((5, 9), (6, 9)))
"""For each step the tokens, start .. end, of either sequence."""

_TOLERANCE = 1e-3
_HALF_TOLERANCE = 0.2
"""Largest difference of logits, as a part of their norm, that rounding explains; a real fault makes about 1."""
_HALF_SHARE = 0.6
"""Part of the tokens that must be within it in half precision: rounding may send a token to another expert."""


def plain_logits(model: PreTrainedModel) -> Tensor:
    """Logits of the test sequences by transformers' own attention, float32 [2, num_tokens, vocab_size].

    Positions are left to the model, as its users leave them.
    """
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            ids = torch.tensor(_test_sequences(model), device=model.device)
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
            return logits.float()
    finally:
        model.set_attn_implementation(ATTENTION_NAME)


def check_forward(forward: ModelForward, expected: Tensor) -> None:
    """Raises CheckpointError where the paged forward is not the model's; `forward` has a cache of NUM_BLOCKS.

    Warns where a backend that promises row invariance does not give it with this model.
    """
    model = forward.model
    sequences = _test_sequences(model)
    alone = _run(forward, [_chunk(0, sequences[0], 0, len(sequences[0]))])[0]
    steps = [
        _run(forward, [_chunk(number, sequences[number], *part) for number, part in enumerate(parts)])
        for parts in _STEPS
    ]
    computed = torch.stack([torch.cat(chunks) for chunks in zip(*steps, strict=True)])
    if forward.cache.backend.is_row_invariant and not torch.equal(alone, computed[0]):
        logger.warning("%s: tokens may differ by rounding with what else is in a batch", type(model).__name__)
    difference = _typical_difference(computed, expected, model.dtype)
    if not difference <= (_TOLERANCE if model.dtype == torch.float32 else _HALF_TOLERANCE):
        raise refusal(model, f"in paged steps its logits differ by {difference:.2g} of their norm")


def _test_sequences(model: PreTrainedModel) -> list[list[int]]:
    vocab_size = model.config.get_text_config().vocab_size
    return [[token_id % vocab_size for token_id in ids] for ids in _SEQUENCES]


def _chunk(number: int, token_ids: Sequence[int], start: int, end: int) -> SequenceChunk:
    """Tokens start .. end of a test sequence, whose KV lies in the block of its number."""
    return SequenceChunk(SequenceId(number), token_ids[start:end], start, [BlockId(number)], None)


def _run(forward: ModelForward, chunks: Sequence[SequenceChunk]) -> tuple[Tensor, ...]:
    """Logits of every token of one step, by chunk."""
    lengths = [len(chunk.token_ids) for chunk in chunks]
    return torch.split(forward(build_step_tensors(chunks, range(sum(lengths)))), lengths)


def _typical_difference(computed: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The largest difference of a token's logits, as a part of their norm; in half precision of most tokens'."""
    differences = (computed - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)
    share = 1.0 if dtype == torch.float32 else _HALF_SHARE
    return float(differences.nan_to_num(nan=torch.inf).flatten().quantile(share))
