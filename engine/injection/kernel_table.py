"""What runs each module of a model, and why nothing faster does: told before any weight is read.

Asks the policies by which the injector replaces modules, on a model without contents.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.examination import KernelRow
from distllm.engine.injection.policies import (
    GATED_ACTIVATIONS,
    RMS_NORM,
    has_experts,
    is_activation,
    is_router,
    why_not_fused_attention,
    why_not_fused_mlp,
)
from distllm.engine.injection.probe import DiscoveredLayer


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the table needs to know of the engine. `missing` says why there are no compiled kernels, if so."""

    attention: str
    weights: str
    missing: str | None


def kernel_table(model: PreTrainedModel, layers: Sequence[DiscoveredLayer], kernels: Kernels) -> list[KernelRow]:
    """Rows in the order in which their first module comes in the model."""
    counts = Counter(_describe(model, layers, kernels))
    return [KernelRow(modules, count, *rest) for (modules, *rest), count in counts.items()]


def _describe(
    model: PreTrainedModel, layers: Sequence[DiscoveredLayer], kernels: Kernels
) -> Iterator[tuple[str, str, str, str]]:
    attending = {id(layer.module): layer for layer in layers}
    for name, module in model.named_modules():
        found = _attention(attending[id(module)], kernels) if id(module) in attending else _other(module, kernels)
        if found is not None:
            yield (re.sub(r"\b\d+\b", "*", name), type(module).__name__, *found)


def _attention(layer: DiscoveredLayer, kernels: Kernels) -> tuple[str, str]:
    reason = kernels.missing or why_not_fused_attention(layer.module, layer.shape.key_dim == layer.shape.value_dim)
    if reason is None:
        return f"fused q, k, v and rotary; {kernels.attention}", ""
    return f"transformers; {kernels.attention}", reason


def _other(module: nn.Module, kernels: Kernels) -> tuple[str, str] | None:
    """None for a module that only holds others, or nothing that takes time."""
    name = type(module).__name__
    if has_experts(module):
        return _with_kernels(f"{kernels.weights}, one expert after the other", kernels)
    if isinstance(module, nn.Linear | Conv1D) or is_router(module):
        return _with_kernels(kernels.weights, kernels)
    if isinstance(module, nn.Embedding):
        return "torch: looks rows up", ""
    if name in RMS_NORM:
        return _with_kernels("fused norm", kernels)
    if "Norm" in name:
        return "torch", kernels.missing or f"no policy for {name}"
    if hasattr(module, "act_fn") and hasattr(module, "down_proj"):
        reason = kernels.missing or why_not_fused_mlp(module)
        if reason is not None:
            return "transformers", reason
        return f"fused gate and up; {GATED_ACTIVATIONS[type(module.act_fn).__name__]}", ""
    return ("torch", "") if is_activation(module) else None


def _with_kernels(runs_on: str, kernels: Kernels) -> tuple[str, str]:
    return (runs_on, "") if kernels.missing is None else ("torch", kernels.missing)
