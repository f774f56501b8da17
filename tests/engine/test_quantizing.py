"""A checkpoint that was quantized once: what its files hold, word by word, and how it is served."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.factory import build_executor
from distllm.engine.interface import BlockId, SequenceChunk, SequenceId
from distllm.engine.quantization.config import QuantizationConfig, QuantizationError
from distllm.engine.quantizing import quantize_checkpoint

CONFIGS = {
    "int4": QuantizationConfig.named("int4"),
    "int4 with zero points": QuantizationConfig.named("int4", symmetric=False, mlp_extra_grouping=True),
    "int8": QuantizationConfig.named("int8"),
    "int8 in groups": QuantizationConfig.named("int8", group_size=32, symmetric=False),
    "w8a8": QuantizationConfig.named("int8", dynamic_activations=True),
}
Checkpoint = Callable[[str], Path]


def unpacked(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] -> codes [rows, words * 32 / bits], the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits)
    codes: Tensor = words.long().unsqueeze(-1) >> shifts & 2**bits - 1
    return codes.flatten(1)


def meaning(tensors: dict[str, Tensor], layer: str, bits: int) -> Tensor:
    """The weight that a layer's stored tensors mean, after compressed-tensors' own words."""
    scales = tensors[f"{layer}.weight_scale"].double()
    if f"{layer}.weight" in tensors:
        return tensors[f"{layer}.weight"].double() * scales
    rows, columns = tensors[f"{layer}.weight_shape"].tolist()
    codes = unpacked(tensors[f"{layer}.weight_packed"], bits)[:, :columns]
    zeros = torch.full(scales.shape, 2 ** (bits - 1))
    if f"{layer}.weight_zero_point" in tensors:
        zeros = unpacked(tensors[f"{layer}.weight_zero_point"].T, bits).T[:rows]
    each = columns // scales.shape[1]
    weight: Tensor = (codes - zeros.repeat_interleave(each, 1)) * scales.repeat_interleave(each, 1)
    return weight


@pytest.mark.parametrize("name", CONFIGS)
def test_every_linear_layer_is_stored_as_the_format_says(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    config, dense = CONFIGS[name], load_file(checkpoint("llama") / "model.safetensors")
    result = quantize_checkpoint(checkpoint("llama"), tmp_path / "out", config)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert result.after_bytes == sum(tensor.nbytes for tensor in stored.values())
    num_layers = 0
    for key, weight in dense.items():
        if not key.endswith("_proj.weight"):
            assert torch.equal(stored[key], weight)
            continue
        layer, num_layers = key.removesuffix(".weight"), num_layers + 1
        scales = stored[f"{layer}.weight_scale"].double()
        step = scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1)
        assert bool(((meaning(stored, layer, config.bits) - weight).abs() <= 1.01 * step).all())
        group = (config.mlp if ".mlp." in layer else config.linear).group_size or weight.shape[1]
        assert scales.shape[1] == weight.shape[1] // group
    assert num_layers == 21


@pytest.mark.parametrize(("kind", "name"), [*(("llama", name) for name in CONFIGS), ("mixtral", "int4")])
def test_it_is_served_like_one_that_is_quantized_while_it_loads(
    checkpoint: Checkpoint, tmp_path: Path, kind: str, name: str
) -> None:
    quantize_checkpoint(checkpoint(kind), tmp_path / "out", CONFIGS[name])
    options: dict[str, Any] = {"device": "cpu", "max_model_len": 64, "num_blocks": 4}
    once = EngineConfig(model=str(tmp_path / "out"), **options)
    loading = EngineConfig(model=str(checkpoint(kind)), quantization=CONFIGS[name], **options)
    logits = []
    for config in (once, loading):
        runner = build_executor(config, lambda _activity, _fraction: None).runner  # type: ignore[attr-defined]
        chunk = SequenceChunk(SequenceId(0), [3, 1, 4, 1, 5, 9, 2, 6], 0, [BlockId(0)], None)
        logits.append(runner.forward(build_step_tensors([chunk], range(8))))
    difference = (logits[0] - logits[1]).norm() / logits[1].norm()  # its embedding and head are dense
    assert difference < (0.1 if name == "w8a8" else 0.03)


def test_all_else_of_the_checkpoint_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in checkpoint("llama").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "tokenizer.json").write_text("{}")
    quantize_checkpoint(source, tmp_path / "out", CONFIGS["int4"])
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = document.pop("quantization_config")["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["strategy"]) == (4, 32, "group")
    assert document == json.loads((source / "config.json").read_text())
    stored = open_checkpoint(tmp_path / "out").quantization
    assert stored is not None
    assert stored.name == "compressed-tensors-w4"


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("llama-odd", CONFIGS["int4"], r"32 does not divide the \d+ inputs of model.layers.0"),
        ("gpt2", CONFIGS["int4"], "is stored transposed, which has no place in the format"),
        ("gpt_oss", CONFIGS["int4"], "is stored for all experts in one"),
        ("llama", QuantizationConfig.named("int8", group_size=32, dynamic_activations=True), "leave group_size"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name_and_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, kind: str, config: QuantizationConfig, reason: str
) -> None:
    with pytest.raises(QuantizationError, match=reason):
        quantize_checkpoint(checkpoint(kind), tmp_path / "out", config)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_halfway_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("distllm.engine.quantizing.write_safetensors", fail)
    with pytest.raises(OSError, match="no space left"):
        quantize_checkpoint(checkpoint("llama"), tmp_path / "out", CONFIGS["int4"])
    assert list(tmp_path.iterdir()) == []


def test_neither_a_quantized_checkpoint_nor_an_existing_directory_is_taken(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    quantize_checkpoint(checkpoint("llama"), tmp_path / "out", CONFIGS["int4"])
    with pytest.raises(QuantizationError, match="is quantized already"):
        quantize_checkpoint(tmp_path / "out", tmp_path / "again", CONFIGS["int8"])
    with pytest.raises(QuantizationError, match="exists already"):
        quantize_checkpoint(checkpoint("llama"), tmp_path / "out", CONFIGS["int8"])
