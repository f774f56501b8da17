"""A decoder layer as one call gives the bits of its modules one by one."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.injection.fused_layer import FusedLayer
from distllm.engine.interface import BlockId, SequenceChunk, SequenceId
from distllm.engine.quantization.config import QuantizationConfig

Serve = Callable[..., Any]
KINDS = ("llama", "llama-odd", "mistral", "qwen2", "qwen3", "gemma")
TOKENS = random.Random(1).choices(range(131), k=45)
INT4 = {"dtype": "bfloat16", "quantization": QuantizationConfig.named("int4", symmetric=False)}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
    {"dtype": "bfloat16", "kv_cache_dtype": "fp8"},
    {"dtype": "bfloat16", "quantization": QuantizationConfig.named("int8")},
    {"dtype": "float32", "quantization": QuantizationConfig.named("int8", dynamic_activations=True)},
    INT4,
)
CASES = [
    (kind, settings) for kind in KINDS for settings in SETTINGS if (kind, settings) != ("llama-odd", INT4)
]  # 60 inputs have no groups of 32


def fused_layers(executor: LocalExecutor) -> list[torch.nn.Module]:
    forward: Any = executor.runner.forward
    return [module for module in forward.model.modules() if isinstance(module.__dict__.get("forward"), FusedLayer)]


@contextmanager
def taken_apart(executor: LocalExecutor) -> Iterator[None]:
    """While it holds, every layer is computed module by module."""
    forwards = {module: module.__dict__.pop("forward") for module in fused_layers(executor)}
    try:
        yield
    finally:
        for module, forward in forwards.items():
            module.forward = forward


def compute(executor: LocalExecutor) -> list[Tensor]:
    """Logits of two sequences, in steps of many rows and of few."""
    logits = []
    for begin, end in ((0, 30), (30, 37), (37, 38), (38, 45)):
        chunks = [
            SequenceChunk(SequenceId(it), TOKENS[begin:end], begin, [BlockId(3 * it + n) for n in range(3)], None)
            for it in range(2)
        ]
        batch = build_step_tensors(chunks, range(2 * (end - begin)))
        logits.append(executor.runner.forward(batch))
    return logits


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_one_call_gives_the_bits_of_the_layers_modules(serve: Serve, kind: str, settings: dict[str, Any]) -> None:
    executor = serve(kind, **settings).executor
    assert len(fused_layers(executor)) == 3
    found = compute(executor)
    with taken_apart(executor):
        assert not fused_layers(executor)
        expected = compute(executor)
    for logits, others in zip(found, expected, strict=True):
        assert torch.equal(logits, others)


@pytest.mark.parametrize("kind", ["gemma2", "phi3", "mixtral", "gpt2"])
def test_layers_of_another_pattern_stay_as_they_are(serve: Serve, kind: str) -> None:
    assert not fused_layers(serve(kind).executor)


def test_no_step_leaves_memory_behind(serve: Serve) -> None:
    executor = serve("llama").executor
    compute(executor)
    forward = fused_layers(executor)[-1].__dict__["forward"]
    assert forward._steps._rows is None
