"""Runs steps through a stage: gives activations for the next one, or chooses tokens."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.interface import StepInput, StepOutput
from distllm.engine.model_runner import ModelRunner
from distllm.engine.sampling.needed_logits import NeededLogits


class Layers(Protocol):
    """A stage's layers and their KV: those of a StageForward here, or those that ranks share."""

    def compute(self, batch: StepTensors, activations: Tensor | None) -> Tensor | NeededLogits:
        """As StageForward says."""


class StageRunner:
    """Not thread-safe."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._tail = _TailForward(layers)
        self._runner = ModelRunner(self._tail)

    @torch.inference_mode()
    def compute(self, batch: StepTensors, activations: Tensor | None) -> Tensor | None:
        """Activations [num_tokens, width] behind the layers, in host memory; None behind the last."""
        output = self._layers.compute(batch, activations)
        return output.cpu() if isinstance(output, Tensor) else None

    @torch.inference_mode()
    def sample(self, step: StepInput, activations: Tensor | None) -> StepOutput:
        """What a step yields whose layers end here."""
        self._tail.activations = activations
        return self._runner.run(step)


class _TailForward:
    """A Forward whose activations come from elsewhere."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self.activations: Tensor | None = None

    def __call__(self, batch: StepTensors) -> Tensor:
        return self.needed(replace(batch, num_candidates=batch.num_candidates[:0])).whole

    def needed(self, batch: StepTensors) -> NeededLogits:
        output = self._layers.compute(batch, self.activations)
        assert isinstance(output, NeededLogits)
        return output
