"""The plan made from files alone agrees with what the engine finds once the model is loaded."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BloomConfig, FalconConfig, MambaConfig, PreTrainedConfig

from distllm.engine.architecture import examine, examine_all
from distllm.engine.checkpoint import CheckpointError, open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.examination import Examination, examine_architecture
from distllm.engine.factory import build_executor
from distllm.engine.plan import MemoryPlan, memory_plan
from distllm.engine.pool_size import OutOfMemory
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.conftest import MODELS

GIB = 1 << 30


def plan_of(path: Path, free_bytes: int = GIB, **options: Any) -> MemoryPlan:
    return memory_plan(open_checkpoint(path), examine(path), config_of(path, **options), free_bytes)


def config_of(path: Path, **options: Any) -> EngineConfig:
    return EngineConfig(model=str(path), device="cpu", **options)


@pytest.mark.parametrize("kind", MODELS)
def test_the_plan_has_the_engines_figures(
    checkpoint: Callable[[str], Path], serve: Callable[..., Any], kind: str
) -> None:
    plan = plan_of(checkpoint(kind))
    info = serve(kind, backend="reference").executor.info
    assert (plan.kv_block_bytes, plan.dtype, plan.model_type) == (info.kv_block_bytes, info.dtype, info.model_type)
    assert plan.weight_bytes == pytest.approx(info.weight_bytes, rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "mixtral"])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantized_weights_are_counted_as_the_engine_keeps_them(
    checkpoint: Callable[[str], Path], serve: Callable[..., Any], kind: str, name: str
) -> None:
    config = QuantizationConfig.named(name, mlp_extra_grouping=name == "int4", symmetric=name == "int8")
    plan = plan_of(checkpoint(kind), quantization=config)
    info = serve(kind, backend="reference", quantization=config).executor.info
    assert plan.weight_bytes == pytest.approx(info.weight_bytes, rel=0.02)  # few scales more, where transposed
    assert plan.quantization == config.name


@pytest.mark.parametrize("kind", ["llama", "llama-odd", "gemma2", "deepseek_v3"])
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_quantized_kv_cache_is_counted_with_its_scales(
    checkpoint: Callable[[str], Path], serve: Callable[..., Any], kind: str, name: str
) -> None:
    plan = plan_of(checkpoint(kind), kv_cache_dtype=name)
    info = serve(kind, kv_cache_dtype=name).executor.info
    assert plan.kv_block_bytes == info.kv_block_bytes
    assert plan.kv_block_bytes < plan_of(checkpoint(kind), dtype="float32").kv_block_bytes / 2


def test_requests_are_counted_in_whole_blocks(checkpoint: Callable[[str], Path]) -> None:
    plan = plan_of(checkpoint("llama"), num_blocks=10)
    assert [plan.max_requests(length) for length in (1, 16, 17, 80, 160, 161)] == [10, 10, 5, 2, 1, 0]
    assert plan.refusal is None
    assert plan.kv_token_bytes * 16 == plan.kv_block_bytes


def test_no_more_requests_run_at_once_than_a_step_carries(checkpoint: Callable[[str], Path]) -> None:
    assert plan_of(checkpoint("llama"), num_blocks=10, max_num_seqs=3).max_requests(16) == 3


@pytest.mark.parametrize("free_bytes", [GIB, 3_000_000, 2_000_000])
def test_the_pool_is_the_engines(checkpoint: Callable[[str], Path], free_bytes: int) -> None:
    """What stays free for a step's intermediate results, and the cap at what a full batch can use."""
    path = checkpoint("llama")
    plan = plan_of(path, free_bytes, max_num_batched_tokens=16)
    budget = int((free_bytes - plan.weight_bytes) * 0.8) - 2 * 16 * 16 * 64 * 4
    assert plan.num_blocks == min(budget // plan.kv_block_bytes, 64 * 8)


def test_what_streams_and_what_that_costs_is_told_with_the_disks_rate(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distllm.engine.offload.forecast.measure_disk_rate", lambda directory, num_bytes: 1e6)
    path = checkpoint("qwen3")
    weight_bytes = plan_of(path).weight_bytes
    limit = int(weight_bytes * 0.95)
    plan = plan_of(path, offload="disk", offload_dir=str(tmp_path), weights_bytes=limit)
    assert plan.refusal is None
    assert plan.offload is not None
    residency = plan.offload.division.residency
    assert (plan.offload.num_layers, residency.streamed, plan.offload.origin) == (3, (0, 1, 2), str(tmp_path))
    assert plan.offload.step_s == residency.streamed_bytes / 1e6
    config = EngineConfig(model=str(path), device="cpu", offload="disk", weights_bytes=limit, num_blocks=16)
    executor = build_executor(config, lambda _activity, _fraction: None)
    assert residency.streamed_bytes == pytest.approx(executor.info.streamed_bytes, rel=0.1)
    executor.close()


def test_a_plan_without_room_for_the_buffers_says_so(checkpoint: Callable[[str], Path]) -> None:
    plan = plan_of(checkpoint("qwen3"), offload="disk", weights_bytes=1000)
    assert plan.refusal is not None
    assert plan.refusal.endswith("raise --weights-memory")
    assert plan.num_blocks == 0


def test_a_plan_refuses_host_memory_for_a_cpu(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="use --offload disk"):
        plan_of(checkpoint("qwen3"), offload="cpu")


def test_what_an_engine_would_say_is_the_refusal(checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint("llama")
    config = EngineConfig(model=str(path), device="cpu", kv_cache_bytes=50_000)
    with pytest.raises(OutOfMemory) as caught:
        build_executor(config, lambda _activity, _fraction: None)
    plan = plan_of(path, kv_cache_bytes=50_000)
    assert plan.refusal == str(caught.value)
    assert plan.num_blocks == 50_000 // plan.kv_block_bytes


def test_weights_that_do_not_fit_are_said_to_be_the_cause(checkpoint: Callable[[str], Path]) -> None:
    plan = plan_of(checkpoint("llama"), free_bytes=1000)
    assert plan.num_blocks == 0
    assert "the weights alone take" in (plan.refusal or "")


def test_half_the_bits_take_half_the_memory(checkpoint: Callable[[str], Path]) -> None:
    wide, narrow = (plan_of(checkpoint("llama"), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (wide.weight_bytes, wide.kv_block_bytes) == (2 * narrow.weight_bytes, 2 * narrow.kv_block_bytes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (FalconConfig(), "FalconForCausalLM cannot be served: its attention cannot be led to the paged cache"),
        (MambaConfig(), "MambaForCausalLM cannot be served: its forward takes no position_ids"),
        (BloomConfig(), "BloomForCausalLM cannot be served: its forward takes no position_ids"),
    ],
    ids=["falcon", "mamba", "bloom"],
)
def test_an_architecture_that_is_not_served_is_refused_from_its_config(
    tmp_path: Path, config: PreTrainedConfig, words: str
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        examine(tmp_path)
    assert str(caught.value) == words


def test_architectures_are_examined_by_a_process_of_its_own(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint("llama")
    assert examine_architecture(open_checkpoint(path), config_of(path)) == examine(path)
    config = json.loads((path / "config.json").read_text()) | {"model_type": "bloom"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="BloomForCausalLM cannot be served"):
        examine_architecture(open_checkpoint(tmp_path), config_of(tmp_path))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"group_size": 64}, r"group_size 64 does not divide the 96 inputs of model\.layers\.0\.mlp\.down_proj"),
        (
            {"group_size": 32, "ranks": 2, "kind": "qwen3"},
            r"does not divide the 48 inputs of .*o_proj",
        ),
        ({"group_size": 32, "ranks": 5}, "4 attention heads cannot be divided over 5 ranks"),
    ],
)
def test_what_serving_would_refuse_to_quantize_or_divide_is_refused_before(
    checkpoint: Callable[[str], Path], options: dict[str, Any], reason: str
) -> None:
    path = checkpoint(options.get("kind", "llama"))
    quantization = QuantizationConfig(bits=4, group_size=options["group_size"])
    config = config_of(path, quantization=quantization, tensor_parallel_size=options.get("ranks", 1))
    with pytest.raises((CheckpointError, ValueError), match=reason):
        examine_all(Examination.of(open_checkpoint(path), config))


def test_weights_that_do_not_fit_the_config_are_found_by_their_headers(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint("llama")
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    config = json.loads((path / "config.json").read_text()) | {"intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()  # as those of a hub name, of which headers alone are fetched
    with pytest.raises(CheckpointError, match=r"has shape \(.*\), config.json asks for"):
        examine_all(Examination.of(opened, config_of(tmp_path)))


def test_planning_needs_no_torch(checkpoint: Callable[[str], Path]) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from distllm.engine.checkpoint import open_checkpoint\n"
        "from distllm.engine.config import EngineConfig\n"
        "from distllm.engine.examination import examine_architecture\n"
        "from distllm.engine.plan import memory_plan\n"
        "from distllm.engine.generation import load_generation_defaults\n"
        "config = EngineConfig(model=sys.argv[1], device='cpu')\n"
        "checkpoint = open_checkpoint(Path(config.model))\n"
        "assert memory_plan(checkpoint, examine_architecture(checkpoint, config), config).num_blocks > 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(checkpoint("llama"))], check=True, timeout=60)
