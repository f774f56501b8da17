"""Checkpoints that others quantized, served as they are: their logits are those of the weights that they mean."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from distllm.engine.architecture import examine
from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import CheckpointError, open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.examination import Examination
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.factory import build_executor
from distllm.engine.interface import BlockId, SequenceChunk, SequenceId
from distllm.engine.plan import memory_plan
from distllm.engine.quantization.config import QuantizationConfig, QuantizationError
from distllm.engine.rehearsal import rehearse
from tests.engine.quantization.other_formats import (
    Packer,
    awq,
    compressed,
    compressed_config,
    fp8,
    gptq,
    int8,
)

TOKENS = random.Random(2).choices(range(131), k=45)
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
_FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
_DYNAMIC = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}

FORMATS: dict[str, tuple[Packer, dict[str, Any]]] = {
    "gptq": (gptq(), _GPTQ | {"desc_act": False, "sym": True}),
    "gptq with zero points": (gptq(symmetric=False), _GPTQ | {"sym": False}),
    "gptq sorted": (gptq(sorted_by_group=True), _GPTQ | {"desc_act": True}),
    "gptq_v2": (gptq(symmetric=False, version=2), _GPTQ | {"checkpoint_format": "gptq_v2"}),
    "gptq of 8 bits": (gptq(8), _GPTQ | {"bits": 8}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "W4A16": (compressed(), compressed_config("pack-quantized", _INT4)),
    "W4A16 with zero points": (compressed(symmetric=False), compressed_config("pack-quantized", _INT4)),
    "W4A16 a channel": (compressed(group=None), compressed_config("pack-quantized", _INT4)),
    "W8A16": (compressed(8), compressed_config("pack-quantized", {**_INT4, "num_bits": 8})),
    "W8": (int8, compressed_config("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})),
    "W8A8": (int8, compressed_config("int-quantized", {"num_bits": 8, "type": "int"}, _DYNAMIC)),
    "fp8 a channel": (fp8(None), compressed_config("float-quantized", _FP8)),
    "fp8 a tensor": (fp8(None, is_tensor=True), {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8 a block": (fp8(32), {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "fp8 a partial block": (fp8(64), {"quant_method": "fp8", "weight_block_size": [64, 64]}),
}


def write(source: Path, to: Path, packer: Packer, config: dict[str, Any]) -> tuple[Path, Path]:
    """The checkpoint `source` with its layers' weights packed, and with what the packed ones mean."""
    packed: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if ".layers." in name and tensor.dim() == 2 and not name.endswith("gate.weight"):
            fields, meant[name] = packer(tensor)
            layer = name.removesuffix(".weight")
            packed |= {f"{layer}.{field}": value.contiguous() for field, value in fields.items()}
        else:
            packed[name] = meant[name] = tensor
    document = json.loads((source / "config.json").read_text())
    for path, tensors, extra in (
        (to / "packed", packed, {"quantization_config": config}),
        (to / "meant", meant, {}),
    ):
        path.mkdir()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(document | extra))
    return to / "packed", to / "meant"


def load(path: Path, **options: Any) -> LocalExecutor:
    config = EngineConfig(model=str(path), device="cpu", max_model_len=128, num_blocks=20, num_threads=2, **options)
    executor = build_executor(config, lambda _activity, _fraction: None)
    assert isinstance(executor, LocalExecutor)
    return executor


def compute(executor: LocalExecutor, lengths: list[int]) -> Tensor:
    done, logits = 0, []
    for length in lengths:
        table = [BlockId(number) for number in range(-(-(done + length) // 16))]
        chunk = SequenceChunk(SequenceId(0), TOKENS[done : done + length], done, table, None)
        logits.append(executor.runner.forward(build_step_tensors([chunk], range(length))))
        done += length
    return torch.cat(logits)


def plain(path: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([TOKENS]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_is_served_as_what_it_means(
    checkpoint: Callable[[str], Path], tmp_path: Path, name: str, backend: str
) -> None:
    packed, meant = write(checkpoint("llama"), tmp_path, *FORMATS[name])
    executor = load(packed, dtype="float32", attention_backend=backend)
    logits, expected = compute(executor, [45]), plain(meant)
    if name == "W8A8":
        assert 1e-3 < (logits - expected).norm() / expected.norm() < 0.1, "inputs are rounded as well"
    else:
        assert (logits - expected).abs().max() < 1e-4
    dense_bytes = load(meant, dtype="float32").info.weight_bytes
    assert executor.info.weight_bytes < 0.6 * dense_bytes


@pytest.mark.parametrize("name", ["gptq", "awq", "W4A16", "W8A8", "fp8 a channel"])
def test_bits_do_not_depend_on_chunks(checkpoint: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS[name])
    executor = load(packed, dtype="bfloat16")
    assert torch.equal(compute(executor, [1] * 45), compute(executor, [45]))
    assert torch.equal(compute(executor, [7, 16, 1, 21]), compute(executor, [45]))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen2", "phi3"])
def test_experts_biases_and_fused_layers_are_read_too(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, backend: str
) -> None:
    packed, meant = write(checkpoint(kind), tmp_path, *FORMATS["W4A16"])
    executor = load(packed, dtype="float32", attention_backend=backend)
    assert (compute(executor, [45]) - plain(meant)).abs().max() < 1e-4


def test_the_plan_counts_weights_as_they_are_stored(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    packed, meant = write(checkpoint("llama"), tmp_path, *FORMATS["W4A16"])
    config = EngineConfig(model=str(packed), device="cpu", dtype="float32")
    plan = memory_plan(open_checkpoint(packed), examine(packed), config, 1 << 30)
    dense = memory_plan(open_checkpoint(meant), examine(meant), config, 1 << 30)
    assert plan.num_parameters == dense.num_parameters
    assert plan.weight_bytes == pytest.approx(load(packed, dtype="float32").info.weight_bytes, rel=0.1)
    assert plan.quantization == "compressed-tensors-w4"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_rehearsed_without_reading_it(
    checkpoint: Callable[[str], Path], tmp_path: Path, name: str, ranks: int
) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS[name])
    opened = open_checkpoint(packed)
    (packed / "model.safetensors").unlink()
    config = EngineConfig(model=str(packed), device="cpu", tensor_parallel_size=ranks)
    for rehearsed in rehearse(Examination.of(opened, config)):
        assert all(parameter.is_meta for parameter in rehearsed.model.parameters())


def test_scales_that_do_not_fit_are_refused_alike_when_planning_and_loading(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS["gptq"])
    tensors = load_file(packed / "model.safetensors")
    scales = "model.layers.0.mlp.down_proj.scales"
    save_file(tensors | {scales: tensors[scales][:-1].contiguous()}, packed / "model.safetensors")
    reason = r"model\.safetensors: model\.layers\.0\.mlp\.down_proj: scales \[64, 2\] and zero points \[64, 3\]"
    with pytest.raises(CheckpointError, match=reason):
        load(packed)
    with pytest.raises(CheckpointError, match=reason):
        list(rehearse(Examination.of(open_checkpoint(packed), EngineConfig(model=str(packed), device="cpu"))))


def test_a_quantized_checkpoint_is_not_quantized_again(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS["gptq"])
    with pytest.raises(QuantizationError, match=r"is quantized already \(gptq-w4\) and cannot be quantized again"):
        load(packed, quantization=QuantizationConfig.named("int8"))


def test_gptq_settings_in_a_file_of_their_own_are_read(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    packer, config = FORMATS["gptq"]
    packed, _ = write(checkpoint("llama"), tmp_path, packer, config)
    expected = compute(load(packed), [45])
    document = json.loads((packed / "config.json").read_text())
    settings = document.pop("quantization_config")
    del settings["quant_method"]
    (packed / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"quantized weights \(.*qweight\) and neither .* says how"):
        open_checkpoint(packed)
    (packed / "quantize_config.json").write_text(json.dumps(settings))
    assert torch.equal(compute(load(packed), [45]), expected)


def test_a_quantization_config_that_is_no_object_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("llama"), tmp_path, dirs_exist_ok=True)
    document = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": [1]}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"is quantized as \[1\], where an object should stand"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("W4A16", _DYNAMIC), ("W8A8", _DYNAMIC | {"symmetric": False})],
    ids=["W4A8", "W8A8 with zero points"],
)
def test_inputs_that_cannot_be_rounded_as_asked_stay_and_the_log_says_so(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    inputs: dict[str, Any],
) -> None:
    packer, config = FORMATS[name]
    weights = config["config_groups"]["group_0"]["weights"]
    packed, meant = write(
        checkpoint("llama"), tmp_path, packer, compressed_config(config["format"], weights, inputs)
    )
    logits = compute(load(packed, dtype="float32"), [45])
    assert (logits - plain(meant)).abs().max() < 1e-4
    assert [record for record in caplog.records if "they stay as they are" in record.message]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 3}, "is quantized as 3 bits; known are 4 and 8"),
        ({"quant_method": "bitsandbytes"}, "is quantized as bitsandbytes; known are gptq"),
        ({"checkpoint_format": "marlin"}, "gptq as 'marlin'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    checkpoint: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    packer, config = FORMATS["gptq"]
    packed, _ = write(checkpoint("llama"), tmp_path, packer, config | change)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(packed)


def test_a_weight_of_another_shape_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS["awq"])
    document = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(document | {"intermediate_size": 128}))
    with pytest.raises(CheckpointError, match=r"mlp\.\w+_proj has shape \(\d+, \d+\), config.json asks for"):
        load(packed)
