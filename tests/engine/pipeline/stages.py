"""Loads a checkpoint's stages in this process and runs steps through all of them."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.served_model import ServedModel, prepare_model


def load_stage(config: EngineConfig, begin: int, end: int, num_layers: int = 3) -> ServedModel:
    return prepare_model(config, lambda *_: None, layers=LayerRange(begin, end, num_layers))


def load_stages(
    config: EngineConfig, cuts: Sequence[int], num_blocks: int, num_layers: int = 3
) -> list[StageForward]:
    """The stages of a model that is cut before each layer in `cuts`."""
    ranges = zip([0, *cuts], [*cuts, num_layers], strict=True)
    return [load_stage(config, begin, end, num_layers).stage_over(num_blocks) for begin, end in ranges]


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


def config_of(path: Path, dtype: str = "float32", **fields: object) -> EngineConfig:
    return EngineConfig(
        model=str(path), device="cpu", dtype=dtype, max_model_len=128, num_threads=2, **fields,  # type: ignore[arg-type]
    )  # fmt: skip
