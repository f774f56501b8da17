"""What runs each module of a model, and why nothing faster does: told before any weight is read.

Asks the policies by which the injector replaces modules, on a model without contents.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from distllm.engine.examination import KernelRow
from distllm.engine.injection.policies import (
    GATED_ACTIVATIONS,
    RMS_NORM,
    has_experts,
    has_gated_activation,
    is_activation,
    is_packed,
    why_not_fused_attention,
    why_not_fused_mlp,
)
from distllm.engine.injection.probe import DiscoveredLayer

_APART = "its projections are stored in different ways"


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the table needs to know of the engine. `missing` says why there are no compiled kernels, if so.

    `weights` says by a module's name how its weight is kept. `apart` are modules whose projections cannot be packed
    as one.
    """

    attention: str
    weights: Mapping[str, str]
    apart: Collection[str]
    missing: str | None


def kernel_table(model: PreTrainedModel, layers: Sequence[DiscoveredLayer], kernels: Kernels) -> list[KernelRow]:
    """Rows in the order in which their first module comes in the model."""
    counts = Counter(_describe(model, layers, kernels))
    return [KernelRow(modules, count, *rest) for (modules, *rest), count in counts.items()]


def _describe(
    model: PreTrainedModel, layers: Sequence[DiscoveredLayer], kernels: Kernels
) -> Iterator[tuple[str, str, str, str]]:
    attending = {id(layer.module): layer for layer in layers}
    fused = ""
    found: tuple[str, str] | None
    for name, module in model.named_modules():
        if id(module) in attending:
            found = _attention(name, attending[id(module)], kernels)
        elif has_gated_activation(module):
            found = _mlp(name, module, kernels)
            fused = "" if found[1] else f"{name}."
        elif is_activation(module) and fused and name.startswith(fused):
            continue  # part of the fused MLP
        else:
            found = _other(name, module, kernels)
        if found is not None:
            yield (re.sub(r"\b\d+\b", "*", name), type(module).__name__, *found)


def _attention(name: str, layer: DiscoveredLayer, kernels: Kernels) -> tuple[str, str]:
    reason = kernels.missing or why_not_fused_attention(layer.module, layer.shape.key_dim == layer.shape.value_dim)
    if name in kernels.apart:
        reason = reason or _APART
    if reason is None:
        return f"fused q, k, v and rotary; {kernels.attention}", ""
    return f"transformers; {kernels.attention}", reason


def _mlp(name: str, module: nn.Module, kernels: Kernels) -> tuple[str, str]:
    reason = kernels.missing or why_not_fused_mlp(module) or (_APART if name in kernels.apart else None)
    if reason is not None:
        return "transformers", reason
    return f"fused gate and up; {GATED_ACTIVATIONS[type(module.act_fn).__name__]}", ""


def _other(name: str, module: nn.Module, kernels: Kernels) -> tuple[str, str] | None:
    """None for a module that only holds others, or nothing that takes time."""
    kind = type(module).__name__
    weight = kernels.weights.get(name, "")
    if has_experts(module) or is_packed(module):
        how = f"{weight}, one expert after the other" if has_experts(module) else weight
        return (how, "") if kernels.missing is None else (f"torch, {weight}", kernels.missing)
    if isinstance(module, nn.Embedding):
        return f"rows of {weight}" if weight else "torch: looks rows up", ""
    if kind in RMS_NORM:
        return ("fused norm", "") if kernels.missing is None else ("torch", kernels.missing)
    if "Norm" in kind or isinstance(module, nn.Linear):
        return "torch", kernels.missing or f"no policy for {kind}"
    return ("torch", kernels.missing or f"no kernel for {kind} alone") if is_activation(module) else None
