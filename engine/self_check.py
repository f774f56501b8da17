"""Compares the paged forward of a loaded model with transformers' own before the first request.

A few tokens go through in steps of mixed chunks of two sequences, so that wrong positions, state kept outside the
cache, or a module replaced wrongly all show.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distllm.engine.batch import build_step_tensors
from distllm.engine.forward import ModelForward
from distllm.engine.injection.attention import ATTENTION_NAME
from distllm.engine.injection.probe import refusal
from distllm.engine.interface import BlockId, SequenceChunk, SequenceId
from distllm.engine.pipeline.stage_model.boundary import Boundary, run_model

logger = logging.getLogger("distllm.engine")

NUM_BLOCKS = 2
"""Blocks that the check needs, one for each of its sequences."""

_SEQUENCES = ([3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1, 8, 2, 8, 1, 8, 2])
_STEPS = (((0, 4), (0, 1)), ((4, 5), (1, 6)), ((5, 9), (6, 9)))
"""For each step the tokens, start .. end, of either sequence."""

_TOLERANCE = 1e-3
_HALF_TOLERANCE = 0.2
"""Largest difference of logits, as a part of their norm, that rounding explains; a real fault makes about 1."""
_RECEIVED_SIZE = 0.05
"""Of the random activations that a stage is checked with: about what embeddings are, so that layers add to it."""
_HALF_SHARE = 0.6
"""Part of the tokens that must be within it in half precision: rounding may send a token to another expert."""


def plain_outputs(model: PreTrainedModel, boundary: Boundary | None = None) -> Tensor:
    """Logits of the test sequences by transformers' own attention, float32 [2, num_tokens, vocab_size].

    Positions are left to the model, as its users leave them. Of a stage that is not the last, activations
    [2, num_tokens, width]; what comes into one that is not the first is random.
    """
    entering = nullcontext() if boundary is None else boundary.receiving(_received(model, boundary))
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode(), entering:
            ids = torch.tensor(_test_sequences(model), device=model.device)
            return run_model(model, input_ids=ids).float()
    finally:
        model.set_attn_implementation(ATTENTION_NAME)


def check_forward(forward: ModelForward, expected: Tensor) -> None:
    """Raises CheckpointError where the paged forward is not the model's; `forward` has a cache of NUM_BLOCKS.

    Warns where a backend that promises row invariance does not give it with this model.
    """
    model, boundary = forward.model, forward.boundary
    received = None if boundary is None else _received(model, boundary)
    (alone,) = _run(forward, [(0, len(_SEQUENCES[0]))], received)
    steps = [_run(forward, parts, received) for parts in _STEPS]
    computed = torch.stack([torch.cat(chunks) for chunks in zip(*steps, strict=True)])
    if forward.cache.backend.is_row_invariant and not torch.equal(alone, computed[0]):
        logger.warning("%s: tokens may differ by rounding with what else is in a batch", type(model).__name__)
    outputs = "logits"
    if boundary is not None and not boundary.layers.is_last:
        outputs = "activations"
        if received is not None:  # what the layers added to them, which may be little
            computed, expected = computed - received.float(), expected - received.float()
    difference = _typical_difference(computed, expected, model.dtype)
    if not difference <= (_TOLERANCE if model.dtype == torch.float32 else _HALF_TOLERANCE):
        raise refusal(model, f"in paged steps its {outputs} differ by {difference:.2g} of their norm")


def _received(model: PreTrainedModel, boundary: Boundary) -> Tensor | None:
    """Activations of the test sequences, [2, num_tokens, width], for a stage that goes on from some."""
    if boundary.entrance is None:
        return None
    shape = (len(_SEQUENCES), len(_SEQUENCES[0]), boundary.entrance.width)
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * _RECEIVED_SIZE
    return rows.to(device=model.device, dtype=model.dtype)


def _test_sequences(model: PreTrainedModel) -> list[list[int]]:
    vocab_size = model.config.get_text_config().vocab_size
    return [[token_id % vocab_size for token_id in ids] for ids in _SEQUENCES]


def _run(forward: ModelForward, parts: Sequence[tuple[int, int]], received: Tensor | None) -> tuple[Tensor, ...]:
    """Outputs of one step that computes tokens start .. end of each test sequence, whose KV is in its own block."""
    sequences = _test_sequences(forward.model)
    chunks = [
        SequenceChunk(SequenceId(number), sequences[number][start:end], start, [BlockId(number)], None)
        for number, (start, end) in enumerate(parts)
    ]
    rows = None
    if received is not None:
        rows = torch.cat([received[number, start:end] for number, (start, end) in enumerate(parts)])
    lengths = [end - start for start, end in parts]
    return torch.split(forward.run(build_step_tensors(chunks, range(sum(lengths))), rows).float(), lengths)


def _typical_difference(computed: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The largest difference of a token's logits, as a part of their norm; in half precision of most tokens'."""
    differences = (computed - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)
    share = 1.0 if dtype == torch.float32 else _HALF_SHARE
    return float(differences.nan_to_num(nan=torch.inf).flatten().quantile(share))
