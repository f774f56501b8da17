"""What a stage has handed on, slot by slot like its KV: enough to rebuild the KV of the stage after it."""

import torch
from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.interface import BLOCK_SIZE


class ActivationLog:
    """Activations [num_blocks * BLOCK_SIZE, width] in host memory, whose pages are taken when they are written.

    It is smaller than a stage's KV by its number of layers times twice the part of the width that KV heads have.
    """

    def __init__(self, num_blocks: int, width: int, dtype: torch.dtype) -> None:
        self._rows = torch.empty(num_blocks * BLOCK_SIZE, width, dtype=dtype)

    def note(self, batch: StepTensors, activations: Tensor) -> None:
        """Keep the activations [num_tokens, width] of a step's tokens, after its block copies."""
        if batch.copies.shape[1]:
            sources, destinations = batch.copies
            blocks = self._rows.view(-1, BLOCK_SIZE, self._rows.shape[1])
            blocks[destinations] = blocks[sources]
        self._rows[batch.attention.slot_mapping] = activations

    def recall(self, batch: StepTensors) -> Tensor:
        """Those that were kept last for a step's tokens, [num_tokens, width]."""
        return self._rows[batch.attention.slot_mapping]
