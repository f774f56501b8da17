"""Runs steps through a stage: activations come in from the stage before, and go out to the next, or logits do."""

import torch
from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.forward import ModelForward
from distllm.engine.pipeline.stage_model.boundary import Boundary
from distllm.engine.sampling.needed_logits import NeededLogits


class WrongActivations(ValueError):
    """Activations do not belong to the step that they came with; the message says in which way."""


class StageForward:
    """Owns a stage's layers and their paged cache. Not thread-safe."""

    def __init__(self, forward: ModelForward, boundary: Boundary, dtype: torch.dtype) -> None:
        self.layers = boundary.layers
        self._entrance = boundary.entrance
        self._forward = forward
        self._dtype = dtype

    @torch.inference_mode()
    def compute(self, batch: StepTensors, activations: Tensor | None) -> Tensor | NeededLogits:
        """Activations [num_tokens, width] of the step's tokens behind the stage's layers; of the last NeededLogits.

        `activations` of the same shape come from the stage before, in the type that the model computes in; None on
        the first stage, which is the only one that reads `batch.input_ids`, though all need them for their number.
        Computes the KV of the stage's layers. `batch` is in host memory. Raises WrongActivations.
        """
        self.check(batch, activations)
        output = self._forward.run(batch, activations)
        if self.layers.is_last:
            return NeededLogits.of(output.float(), batch.num_candidates)
        return output

    def check(self, batch: StepTensors, activations: Tensor | None) -> None:
        """Raises WrongActivations."""
        entrance = self._entrance
        if (entrance is None) != (activations is None):
            wanted = "no activations" if entrance is None else "activations of the stage before"
            raise WrongActivations(f"{self.layers} take {wanted}")
        if entrance is None or activations is None:
            return
        shape = (batch.input_ids.shape[1], entrance.width)
        if activations.shape != shape or activations.dtype != self._dtype:
            found = f"{tuple(activations.shape)} of {activations.dtype}"
            raise WrongActivations(f"activations are {found}, where the step asks for {shape} of {self._dtype}")
