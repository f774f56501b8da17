"""The plan made from files alone agrees with what the engine finds once the model is loaded."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.plan import memory_plan

GIB = 1 << 30


@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "llama-odd",
        "mistral",
        "qwen3",
        "phi3",
        "gemma2",
        "gpt2",
        "opt",
        "gpt_neox",
        "mixtral",
        "qwen3_moe",
        "deepseek_v3",
    ],
)
def test_the_plan_has_the_engines_figures(
    checkpoint: Callable[[str], Path], serve: Callable[..., Any], kind: str
) -> None:
    plan = memory_plan(EngineConfig(model=str(checkpoint(kind)), device="cpu"), free_bytes=GIB)
    info = serve(kind, backend="reference").executor.info
    assert (plan.kv_block_bytes, plan.dtype, plan.model_type) == (info.kv_block_bytes, info.dtype, info.model_type)
    assert plan.weight_bytes == pytest.approx(info.weight_bytes, rel=1e-3)


def test_requests_are_counted_in_whole_blocks(checkpoint: Callable[[str], Path]) -> None:
    config = EngineConfig(model=str(checkpoint("llama")), device="cpu", num_blocks=10)
    plan = memory_plan(config, free_bytes=GIB)
    assert [plan.max_requests(length) for length in (1, 16, 17, 80, 160, 161)] == [10, 10, 5, 2, 1, 0]
    assert plan.fits
    assert plan.kv_token_bytes * 16 == plan.kv_block_bytes


def test_blocks_share_what_the_weights_leave(checkpoint: Callable[[str], Path]) -> None:
    config = EngineConfig(model=str(checkpoint("llama")), device="cpu")
    plan = memory_plan(config, free_bytes=GIB)
    assert plan.num_blocks == int((GIB - plan.weight_bytes) * 0.8) // plan.kv_block_bytes
    assert memory_plan(config, free_bytes=plan.weight_bytes // 2).num_blocks == 0
    assert not memory_plan(config, free_bytes=plan.weight_bytes // 2).fits


def test_half_the_bits_take_half_the_memory(checkpoint: Callable[[str], Path]) -> None:
    wide, narrow = (
        memory_plan(EngineConfig(model=str(checkpoint("llama")), device="cpu", dtype=dtype), free_bytes=GIB)
        for dtype in ("float32", "bfloat16")
    )
    assert (wide.weight_bytes, wide.kv_block_bytes) == (2 * narrow.weight_bytes, 2 * narrow.kv_block_bytes)


def test_a_config_that_does_not_say_is_refused(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "max_position_embeddings": 9}')
    (tmp_path / "model.safetensors").write_bytes((checkpoint("llama") / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="has no num_attention_heads"):
        memory_plan(EngineConfig(model=str(tmp_path), device="cpu"), free_bytes=GIB)


def test_planning_needs_no_torch(checkpoint: Callable[[str], Path]) -> None:
    script = (
        "import sys\n"
        "from distllm.engine.config import EngineConfig\n"
        "from distllm.engine.plan import memory_plan\n"
        "from distllm.engine.generation import load_generation_defaults\n"
        "assert memory_plan(EngineConfig(model=sys.argv[1], device='cpu')).num_blocks > 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(checkpoint("llama"))], check=True, timeout=60)
