"""One forward pass over a step's tensors: by one model here, or by the ranks that share one."""

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distllm.engine.batch import StepTensors
from distllm.engine.injection.attention import PagedCache
from distllm.engine.sampling.needed_logits import NeededLogits


class Forward(Protocol):
    """Computes the KV of a step's tokens and the logits of the rows that it needs. `batch` is in host memory."""

    def __call__(self, batch: StepTensors) -> Tensor:
        """All logits of every needed row, float32 [num_rows, vocab_size]."""

    def needed(self, batch: StepTensors) -> NeededLogits:
        """No more of them than the batch says are read."""


class ModelForward:
    """Owns a model, or a rank's part of one, and its paged cache. Not thread-safe."""

    def __init__(self, model: PreTrainedModel, cache: PagedCache) -> None:
        self.model = model
        self.cache = cache
        self._device = model.device

    @torch.inference_mode()
    def __call__(self, batch: StepTensors) -> Tensor:
        """As Forward says; a rank's logits are those of its part of the vocabulary."""
        batch = batch.to(self._device)
        if batch.copies.shape[1]:
            self.cache.copy_blocks(*batch.copies)
        with self.cache.running(batch.attention):
            output = self.model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=batch.needed_rows,
            )
        logits: Tensor = output.logits[0]
        return logits.float()

    @torch.inference_mode()
    def needed(self, batch: StepTensors) -> NeededLogits:
        """As Forward says, of the same part of the vocabulary."""
        return NeededLogits.of(self(batch), batch.num_candidates)
