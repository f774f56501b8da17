"""A layer is timed without the model's weights, whatever the model, and leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distllm.engine.config import EngineConfig
from distllm.engine.executor.pipeline import describe_model
from distllm.engine.pipeline.coordinator.model_sample import ModelSample, sample_model
from distllm.engine.pipeline.measuring.layer_timing import time_layer
from distllm.engine.pipeline.placement.measuring import MEASURED_ROWS
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.pipeline.stages import config_of
from tests.engine.test_forward import KINDS
from tests.engine.test_stored_quantization import FORMATS, write

Checkpoints = Callable[[str], Path]


def sample_of(config: EngineConfig) -> ModelSample:
    return sample_model(config, describe_model(config, ""))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_timed_without_the_checkpoint(checkpoint: Checkpoints, tmp_path: Path, kind: str) -> None:
    config = config_of(checkpoint(kind))
    sample = sample_of(config)
    here = config_of(tmp_path / "absent")
    times = time_layer(sample.sample, here, tmp_path, budget_s=0.0)
    assert times.decode.rows == times.head.rows == MEASURED_ROWS
    assert 0 < times.prefill_s < times.decode.at(1)
    assert not list(tmp_path.iterdir())


def test_quantized_layers_are_timed(checkpoint: Checkpoints, tmp_path: Path) -> None:
    config = config_of(checkpoint("llama"), quantization=QuantizationConfig(bits=8))
    times = time_layer(sample_of(config).sample, config, tmp_path, budget_s=0.0)
    assert times.decode.at(1) > 0


@pytest.mark.parametrize("name", FORMATS)
def test_stored_quantized_layers_are_timed(checkpoint: Checkpoints, tmp_path: Path, name: str) -> None:
    path, _ = write(checkpoint("llama"), tmp_path, *FORMATS[name])
    config = config_of(path)
    times = time_layer(sample_of(config).sample, config, tmp_path, budget_s=0.0)
    assert times.decode.at(1) > 0


def test_a_sample_names_the_last_layer_and_the_head_alone(checkpoint: Checkpoints) -> None:
    sample = sample_of(config_of(checkpoint("llama-odd"))).sample
    names = {tensor.name for tensor in sample.tensors}
    assert "lm_head.weight" in names
    assert "model.embed_tokens.weight" not in names
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"2"}
    assert (sample.stage.begin, sample.stage.end) == (2, 3)
    assert json.loads(sample.config_json)["num_hidden_layers"] == 3


def test_a_sample_has_the_sizes_of_the_model(checkpoint: Checkpoints) -> None:
    sample = sample_of(config_of(checkpoint("llama")))
    assert sample.sizes.num_layers == 3
    assert sample.sizes.tied_bytes == sample.sizes.embedding_bytes > 0
    assert (sample.sizes.hidden_size, sample.sizes.activation_bytes) == (64, 256)
    assert sample.kv_token_bytes == 2 * 2 * 16 * 4
    assert sample.activation_bytes > 0
