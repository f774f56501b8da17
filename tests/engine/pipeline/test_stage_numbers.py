"""What is told of stages from headers agrees with what they take once they are loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distllm.engine.checkpoint import open_checkpoint
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.stage_numbers import stage_numbers
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.conftest import Served
from tests.engine.pipeline.stages import config_of, load_stage
from tests.engine.test_forward import KINDS

RANGES = ((0, 1), (1, 2), (2, 3), (0, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_has_the_bytes_that_were_told(
    checkpoint: Callable[[str], Path], serve: Callable[..., Served], kind: str
) -> None:
    config = config_of(checkpoint(kind), attention_backend="reference")
    (numbers,) = stage_numbers(open_checkpoint(checkpoint(kind)), config, [None])
    for begin, end in RANGES:
        stage = load_stage(config, begin, end)
        told = numbers.weight_bytes(LayerRange(begin, end, 3))
        assert told == pytest.approx(stage.weight_bytes, rel=1e-3)
        assert 16 * sum(numbers.kv_token_bytes[begin:end]) == stage.pool_need(config).block_bytes
    info = serve(kind, backend="reference").executor.info
    assert numbers.weight_bytes(LayerRange(0, 3, 3)) == pytest.approx(info.weight_bytes, rel=1e-3)
    assert (numbers.num_layers, numbers.dtype) == (3, "float32")
    assert (numbers.width, numbers.activation_token_bytes) == ((60, 240) if kind == "llama-odd" else (64, 256))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "mixtral"])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantized_stages_have_the_bytes_that_were_told(
    checkpoint: Callable[[str], Path], kind: str, name: str
) -> None:
    quantization = QuantizationConfig.named(name)
    config = config_of(
        checkpoint(kind), "bfloat16", attention_backend="reference", quantization=quantization, kv_cache_dtype="fp8"
    )
    (numbers,) = stage_numbers(open_checkpoint(checkpoint(kind)), config, [quantization])
    for begin, end in RANGES[:3]:
        stage = load_stage(config, begin, end)
        told = numbers.weight_bytes(LayerRange(begin, end, 3))
        assert told == pytest.approx(stage.weight_bytes, rel=0.02)  # few scales more, where transposed
        assert 16 * sum(numbers.kv_token_bytes[begin:end]) == stage.pool_need(config).block_bytes
    assert numbers.dtype == "bfloat16"
