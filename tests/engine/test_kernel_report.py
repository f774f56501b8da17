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
from distllm.engine.kernel_report import report
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.test_forward import KINDS


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
    assert {row.reason for row in plain if row.runs_on == "torch"} == {"plain torch was asked for", ""}


def test_quantized_weights_go_by_their_scheme(checkpoint: Callable[[str], Path]) -> None:
    config = EngineConfig(model=str(checkpoint("llama")), device="cpu", quantization=QuantizationConfig(bits=8))
    (head,) = [row for row in table(config) if row.modules == "lm_head"]
    assert "w8" in head.runs_on
