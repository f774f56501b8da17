"""The table of what runs each module, against the model that an engine really builds."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distllm.engine.config import EngineConfig
from distllm.engine.examination import Examination, KernelRow
from distllm.engine.factory import build_executor
from distllm.engine.forward import ModelForward
from distllm.engine.injection.fused import FusedAttention, FusedGatedMLP, FusedRMSNorm
from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.kernel_report import report
from distllm.engine.kernels.quantized import QuantizedPanels
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.test_forward import KINDS
from tests.engine.test_stored_quantization import FORMATS, write


def table(config: EngineConfig) -> list[KernelRow]:
    return report(Examination(config=config, headers=None))


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_names_as_fused_what_the_engine_fuses(checkpoint: Callable[[str], Path], kind: str) -> None:
    config = EngineConfig(model=str(checkpoint(kind)), device="cpu", num_threads=1, max_model_len=64, num_blocks=8)
    told = {row.modules for row in table(config) if row.runs_on.startswith("fused")}
    executor = build_executor(config, lambda *_: None)
    forward = executor.runner.forward  # type: ignore[attr-defined]
    assert isinstance(forward, ModelForward)
    fused = {
        re.sub(r"\b\d+\b", "*", name)
        for name, module in forward.model.named_modules()
        if isinstance(module, FusedAttention | FusedGatedMLP | FusedRMSNorm)
    }
    assert told == fused


def test_where_something_faster_is_thinkable_the_table_says_why_not(checkpoint: Callable[[str], Path]) -> None:
    config = EngineConfig(model=str(checkpoint("gpt2")), device="cpu", num_threads=1)
    rows = {row.modules: row for row in table(config)}
    attention, norm = rows["transformer.h.*.attn"], rows["transformer.h.*.ln_1"]
    assert (attention.kind, attention.count, attention.reason) == (
        "GPT2Attention",
        3,
        "no policy for GPT2Attention",
    )
    assert (norm.count, norm.reason) == (3, "no policy for LayerNorm")
    plain = table(replace(config, attention_backend="reference"))
    told = {row.reason for row in plain if row.runs_on.startswith("torch") and row.kind != "Embedding"}
    assert told == {"plain torch was asked for"}


def test_each_weight_goes_by_what_becomes_of_it(checkpoint: Callable[[str], Path]) -> None:
    """Against the model that an engine really builds: routers stay dense, the head has eight bits."""
    config = EngineConfig(
        model=str(checkpoint("mixtral")),
        device="cpu",
        num_threads=1,
        max_model_len=64,
        num_blocks=8,
        quantization=QuantizationConfig(bits=4, group_size=32),
    )
    rows = {row.modules: row.runs_on for row in table(config)}
    assert "w8" in rows["lm_head"]
    assert "w8" in rows["model.embed_tokens"]
    assert "w4g32" in rows["model.layers.*.self_attn.o_proj"]
    assert "w4g32" in rows["model.layers.*.mlp.experts"]
    assert "float32" in rows["model.layers.*.mlp.gate"]
    forward = build_executor(config, lambda *_: None).runner.forward  # type: ignore[attr-defined]
    for name, module in forward.model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, PackedWeight):
            told = rows[re.sub(r"\b\d+\b", "*", name)]
            form = weight.panels.format if isinstance(weight.panels, QuantizedPanels) else "float32"
            assert {"int8": "w8", "int4": "w4g32", "float32": "float32"}[form] in told


def test_what_a_quantized_checkpoint_leaves_dense_is_told_as_dense(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS["awq"])
    rows = {row.modules: row.runs_on for row in table(EngineConfig(model=str(packed), device="cpu", num_threads=1))}
    assert rows["model.layers.*.mlp.down_proj"] == "packed awq-w4"
    assert rows["lm_head"] == "packed float32"
    assert rows["model.embed_tokens"] == "rows of packed float32"


def test_an_activation_that_torch_runs_has_its_reason(checkpoint: Callable[[str], Path]) -> None:
    rows = {row.modules: row for row in table(EngineConfig(model=str(checkpoint("gpt2")), device="cpu"))}
    activation = rows["transformer.h.*.mlp.act"]
    assert (activation.runs_on, activation.reason) == ("torch", "no kernel for NewGELUActivation alone")
    fused = {row.modules for row in table(EngineConfig(model=str(checkpoint("llama")), device="cpu"))}
    assert not [name for name in fused if "act_fn" in name], "it is part of the fused MLP"
