"""One forward pass over a step's tensors: by one model here, or by the ranks that share one."""

from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distllm.engine.batch import StepTensors
from distllm.engine.injection.attention import PagedCache
from distllm.engine.pipeline.stage_model.boundary import Boundary, run_model
from distllm.engine.sampling.needed_logits import NeededLogits


class Forward(Protocol):
    """Computes the KV of a step's tokens and the logits of the rows that it needs. `batch` is in host memory."""

    def __call__(self, batch: StepTensors) -> Tensor:
        """All logits of every needed row, float32 [num_rows, vocab_size]."""

    def needed(self, batch: StepTensors) -> NeededLogits:
        """No more of them than the batch says are read."""


class ModelForward:
    """Owns a model, or a rank's or stage's part of one, and its paged cache. Not thread-safe."""

    def __init__(self, model: PreTrainedModel, cache: PagedCache, boundary: Boundary | None = None) -> None:
        self.model = model
        self.cache = cache
        self.boundary = boundary
        self._device = model.device

    @torch.inference_mode()
    def __call__(self, batch: StepTensors) -> Tensor:
        """As Forward says; a rank's logits are those of its part of the vocabulary."""
        return self.run(batch).float()

    @torch.inference_mode()
    def needed(self, batch: StepTensors) -> NeededLogits:
        """As Forward says, of the same part of the vocabulary."""
        return NeededLogits.of(self(batch), batch.num_candidates)

    @torch.inference_mode()
    def run(self, batch: StepTensors, activations: Tensor | None = None) -> Tensor:
        """What the model computes, in its own type: [num_rows, vocab_size], or [num_tokens, width] behind a stage.

        `activations` [num_tokens, width] are those of the stage before.
        """
        batch = batch.to(self._device)
        if batch.copies.shape[1]:
            self.cache.copy_blocks(*batch.copies)
        received = None if activations is None else activations.to(self._device).unsqueeze(0)
        entering = nullcontext() if self.boundary is None else self.boundary.receiving(received)
        with self.cache.running(batch.attention), entering:
            return run_model(
                self.model,
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                logits_to_keep=batch.needed_rows,
            )[0]
