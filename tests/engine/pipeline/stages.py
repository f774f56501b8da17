"""Loads a checkpoint's stages in this process and runs steps through all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distllm.engine.batch import StepTensors, build_step_tensors
from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.served_model import ServedModel, prepare_model
from tests.engine.conftest import Served
from tests.engine.test_forward import Part, Schedule


def config_of(path: Path, dtype: str = "float32", **fields: Any) -> EngineConfig:
    numbers: dict[str, Any] = {"dtype": dtype, "max_model_len": 128, "num_threads": 2}
    return EngineConfig(model=str(path), device="cpu", **numbers, **fields)


def load_stage(config: EngineConfig, begin: int, end: int, num_layers: int = 3) -> ServedModel:
    return prepare_model(config, lambda *_: None, layers=LayerRange(begin, end, num_layers))


def load_stages(
    config: EngineConfig, cuts: Sequence[int], num_blocks: int, num_layers: int = 3
) -> list[StageForward]:
    """The stages of a model that is cut before each layer in `cuts`."""
    ranges = zip([0, *cuts], [*cuts, num_layers], strict=True)
    return [load_stage(config, begin, end, num_layers).stage_over(num_blocks) for begin, end in ranges]


def step_of(parts: Sequence[Part]) -> StepTensors:
    """A step over the parts, of which every token's logits are needed."""
    num_tokens = sum(part.end - part.start for part in parts)
    return build_step_tensors([part.chunk() for part in parts], range(num_tokens))


def run_stages(stages: Sequence[StageForward], batch: StepTensors) -> NeededLogits:
    """What the last stage makes of a step that goes through all of them."""
    activations: Tensor | None = None
    for stage in stages[:-1]:
        output = stage.compute(batch, activations)
        assert isinstance(output, Tensor)
        activations = output
    logits = stages[-1].compute(batch, activations)
    assert isinstance(logits, NeededLogits)
    return logits


def check_bits(served: Served, stages: Sequence[StageForward], steps: Schedule) -> None:
    """Every step through the stages has the logits of the whole model."""
    for step in steps:
        batch = step_of(step)
        expected = served.executor.runner.forward(batch)  # type: ignore[attr-defined]
        assert torch.equal(run_stages(stages, batch).whole, expected)
