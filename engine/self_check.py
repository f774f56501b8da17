"""Compares the paged forward of a loaded model with transformers' own before the first request.

The few tokens go through in two steps of mixed chunks of two sequences, so that wrong positions, state kept outside
the cache, or a module replaced wrongly all show.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distllm.engine.injection.attention import ATTENTION_NAME
from distllm.engine.injection.probe import forward, refusal
from distllm.engine.interface import BlockId, SequenceChunk, SequenceId
from distllm.engine.model_runner import ModelRunner

logger = logging.getLogger("distllm.engine")

NUM_BLOCKS = 2
"""Blocks that the check needs, one for each of its sequences."""

_SEQUENCES = ([1, 2, 3], [3, 1, 4, 1, 5])
_TOLERANCE = {torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
"""Largest difference of logits, as a part of their norm, that rounding explains; a real fault makes about 1."""


def plain_logits(model: PreTrainedModel) -> list[Tensor]:
    """Logits after each test sequence by transformers' own attention, float32 [vocab_size] each."""
    model.set_attn_implementation("eager")
    try:
        return [_plain(model, ids) for ids in _test_sequences(model)]
    finally:
        model.set_attn_implementation(ATTENTION_NAME)


def check_forward(runner: ModelRunner, expected: Sequence[Tensor]) -> None:
    """Raises CheckpointError where the paged forward is not the model's; `runner` has a cache of NUM_BLOCKS.

    Warns where a backend that promises row invariance does not give it with this model.
    """
    model = runner.model
    first, second = _test_sequences(model)
    alone = runner.forward([_chunk(0, first, 0, 3)], [2])[0]
    runner.forward([_chunk(0, first, 0, 2), _chunk(1, second, 0, 1)], [])
    logits = runner.forward([_chunk(0, first, 2, 3), _chunk(1, second, 1, 5)], [0, 4])
    if runner.cache.backend.is_row_invariant and not torch.equal(alone, logits[0]):
        logger.warning("%s: tokens may differ by rounding with what else is in a batch", type(model).__name__)
    tolerance = _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)
    for computed, right in zip(logits, expected, strict=True):
        difference = (computed - right).norm() / right.norm().clamp(min=1e-6)
        if not bool(difference <= tolerance):
            raise refusal(model, f"in paged steps its logits differ by {float(difference):.2g} of their norm")


def _test_sequences(model: PreTrainedModel) -> list[list[int]]:
    vocab_size = model.config.get_text_config().vocab_size
    return [[token_id % vocab_size for token_id in ids] for ids in _SEQUENCES]


def _plain(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    ids = torch.tensor([token_ids], device=model.device)
    positions = torch.arange(len(token_ids), device=model.device).unsqueeze(0)
    last = torch.tensor([len(token_ids) - 1], device=model.device)
    return forward(model, ids, positions, last)[0].float()


def _chunk(number: int, token_ids: Sequence[int], start: int, end: int) -> SequenceChunk:
    """Tokens start .. end of a test sequence, whose KV lies in the block of its number."""
    return SequenceChunk(SequenceId(number), token_ids[start:end], start, [BlockId(number)], None)
