"""Quantized models in paged steps: kernels against plain torch, and bit against bit."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.config import EngineConfig
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.factory import build_executor
from distllm.engine.interface import BlockCopy, BlockId, SequenceChunk, SequenceId
from distllm.engine.quantization.config import QuantizationConfig, QuantizationError

INT8 = QuantizationConfig.named("int8")
W8A8 = QuantizationConfig.named("int8", dynamic_activations=True)
INT4 = QuantizationConfig.named("int4")
EXTRA = QuantizationConfig.named("int4", symmetric=False, mlp_extra_grouping=True)
INT8_KINDS = ("llama", "llama-odd", "phi3", "gemma2", "gpt2", "opt", "qwen3_moe", "deepseek_v3", "gpt_oss")
INT4_KINDS = ("llama", "qwen2", "mistral", "gpt2", "gpt_neox", "mixtral", "gpt_oss")
CASES = [
    *((kind, INT8) for kind in INT8_KINDS),
    *((kind, INT4) for kind in INT4_KINDS),
    ("llama", EXTRA),
    ("mixtral", EXTRA),
    ("llama", W8A8),
    ("mixtral", W8A8),
]
Serve = Callable[..., Any]
TOKENS = random.Random(1).choices(range(131), k=45)


def compute(executor: LocalExecutor, lengths: list[int], block: int = 0) -> Tensor:
    """Logits of TOKENS computed in chunks of `lengths` in the four blocks from `block` on."""
    done, logits = 0, []
    for length in lengths:
        table = [BlockId(block + number) for number in range(-(-(done + length) // 16))]
        chunk = SequenceChunk(SequenceId(0), TOKENS[done : done + length], done, table, None)
        logits.append(executor.runner.forward(build_step_tensors([chunk], range(length))))
        done += length
    return torch.cat(logits)


@pytest.mark.parametrize(("kind", "config"), CASES, ids=lambda case: getattr(case, "name", case))
def test_kernels_give_the_logits_of_plain_torch(serve: Serve, kind: str, config: QuantizationConfig) -> None:
    expected = compute(serve(kind, backend="reference", quantization=config).executor, [45])
    logits = compute(serve(kind, quantization=config).executor, [45])
    tolerance = 0.05 if config.dynamic_activations else 1e-4  # a code more or less, where a rounding ties
    assert (logits - expected).abs().max() < tolerance


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("kind", "config"), CASES, ids=lambda case: getattr(case, "name", case))
def test_bits_do_not_depend_on_chunks_or_blocks(
    serve: Serve, kind: str, config: QuantizationConfig, dtype: str
) -> None:
    executor = serve(kind, dtype, quantization=config).executor
    alone = compute(executor, [45])
    assert torch.equal(compute(executor, [1] * 45, 4), alone)
    assert torch.equal(compute(executor, [7, 16, 1, 1, 20], 8), alone)


@pytest.mark.parametrize(("config", "most"), [(INT8, 0.1), (W8A8, 0.15), (INT4, 0.6)])
def test_quantized_logits_are_near_those_of_the_dense_model(
    serve: Serve, plain_logits: Callable[..., Tensor], config: QuantizationConfig, most: float
) -> None:
    expected = plain_logits("llama", tuple(TOKENS))
    logits = compute(serve("llama", quantization=config).executor, [45])
    difference = (logits - expected).norm() / expected.norm()
    assert 1e-4 < difference < most


KV_CASES = [
    (kind, name) for kind in ("llama", "llama-odd", "gemma2", "gpt2", "gpt_oss") for name in ("int8", "fp8")
]


@pytest.mark.parametrize(("kind", "name"), KV_CASES)
def test_a_quantized_kv_cache_gives_the_logits_of_plain_torch(serve: Serve, kind: str, name: str) -> None:
    expected = compute(serve(kind, backend="reference", kv_cache_dtype=name).executor, [20, 25])
    logits = compute(serve(kind, kv_cache_dtype=name).executor, [20, 25])
    assert (logits - expected).norm() / expected.norm() < 0.01  # a code more or less, where a rounding ties
    exact = compute(serve(kind).executor, [20, 25])
    assert (logits - exact).norm() / exact.norm() > 1e-4, "the cache is quantized"


@pytest.mark.parametrize(("kind", "name"), KV_CASES)
def test_bits_over_a_quantized_kv_cache_do_not_depend_on_chunks_or_blocks(
    serve: Serve, kind: str, name: str
) -> None:
    executor = serve(kind, "bfloat16", kv_cache_dtype=name).executor
    alone = compute(executor, [45])
    assert torch.equal(compute(executor, [1] * 45, 4), alone)
    assert torch.equal(compute(executor, [7, 16, 1, 1, 20], 8), alone)


@pytest.mark.parametrize("backend", ["paged_cpu", "reference"])
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_copied_block_carries_its_scales(serve: Serve, name: str, backend: str) -> None:
    executor = serve("llama", backend=backend, kv_cache_dtype=name).executor
    alone = compute(executor, [16, 20])
    chunk = SequenceChunk(SequenceId(0), TOKENS[16:36], 16, [BlockId(9), BlockId(1), BlockId(2)], None)
    step = build_step_tensors([chunk], range(20), [BlockCopy(BlockId(0), BlockId(9))])
    assert torch.equal(executor.runner.forward(step), alone[16:])


def test_numerics_and_weight_bytes_tell_that_weights_are_quantized(serve: Serve) -> None:
    served = [serve("llama", "bfloat16", quantization=config) for config in (None, INT8, INT4)]
    dense, int8, int4 = (each.executor.info for each in served)
    assert int8.numerics == f"{dense.numerics}/w8"
    assert int4.numerics == f"{dense.numerics}/w4g32"
    both = serve("llama", "bfloat16", quantization=INT4, kv_cache_dtype="fp8").executor.info
    assert both.numerics == f"{dense.numerics}/w4g32/kvfp8"
    assert int8.weight_bytes < 0.56 * dense.weight_bytes
    assert int4.weight_bytes < 0.4 * dense.weight_bytes


def test_an_engine_takes_over_the_numerics_of_a_quantized_one(serve: Serve) -> None:
    first = serve("llama", "bfloat16", quantization=INT4)
    config = EngineConfig(
        model=str(first.path),
        dtype="bfloat16",
        max_model_len=128,
        num_blocks=40,
        numerics=first.executor.info.numerics,
        quantization=INT4,
    )
    second = build_executor(config, lambda _activity, _fraction: None)
    assert second.info.numerics == first.executor.info.numerics


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("kind", "layer"), [("llama-odd", "q_proj"), ("qwen3_moe", "mlp.experts.down_proj")])
def test_groups_that_do_not_divide_are_refused_by_the_layers_name(
    checkpoint: Callable[[str], Path], kind: str, layer: str, backend: str
) -> None:
    path = str(checkpoint(kind))
    config = EngineConfig(model=path, attention_backend=backend, quantization=INT4)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match=rf"32 does not divide the \d+ inputs of model\S*{layer}"):
        build_executor(config, lambda _activity, _fraction: None)
