"""Puts the CPU kernels under a model, once its weights are packed: replaces the modules that policies name."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from distllm.engine.injection.elementwise import RowwiseActivation
from distllm.engine.injection.fused import FusedAttention, FusedGatedMLP, FusedRMSNorm
from distllm.engine.injection.fused_layer import fuse_layers
from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.injection.policies import (
    GATE_UP,
    GATED_ACTIVATIONS,
    QKV,
    RMS_NORM,
    is_activation,
    why_not_fused_attention,
    why_not_fused_mlp,
)
from distllm.engine.injection.probe import DiscoveredLayer
from distllm.engine.kernels.ops import CpuKernels


def fuse_modules(model: nn.Module, layers: Sequence[DiscoveredLayer], kernels: CpuKernels) -> list[DiscoveredLayer]:
    """Replace what policies name in `model`. Returns `layers` with the modules that attend from now on."""
    for replace_module in (_fused_mlp, _fused_norm, _rowwise_activation):
        for name, module in list(model.named_modules()):
            replacement = replace_module(module, kernels)
            if replacement is not None:
                model.set_submodule(name, replacement)
    names = {id(module): name for name, module in model.named_modules()}
    attending = [_fuse_attention(model, names[id(layer.module)], layer, kernels) for layer in layers]
    fuse_layers(model, kernels)
    return attending


def _rowwise_activation(module: nn.Module, _: CpuKernels) -> nn.Module | None:
    return RowwiseActivation(module) if is_activation(module) else None


def _fused_norm(module: nn.Module, kernels: CpuKernels) -> nn.Module | None:
    style = RMS_NORM.get(type(module).__name__)
    return None if style is None else FusedRMSNorm(module, style, kernels)


def _fused_mlp(module: nn.Module, kernels: CpuKernels) -> nn.Module | None:
    if why_not_fused_mlp(module) is not None or not _are_packed_together(module, GATE_UP):
        return None
    return FusedGatedMLP(module, GATED_ACTIVATIONS[type(module.act_fn).__name__], kernels)


def _fuse_attention(model: nn.Module, name: str, layer: DiscoveredLayer, kernels: CpuKernels) -> DiscoveredLayer:
    reason = why_not_fused_attention(layer.module, layer.shape.key_dim == layer.shape.value_dim)
    if reason is not None or not _are_packed_together(layer.module, QKV):
        return layer
    fused = FusedAttention(layer.module, layer.shape, layer.call, kernels)
    model.set_submodule(name, fused)
    return replace(layer, module=fused)


def _are_packed_together(module: nn.Module, names: Sequence[str]) -> bool:
    weights = [module.get_submodule(name).weight for name in names]
    return all(isinstance(weight, PackedWeight) and weight.rows is not None for weight in weights)
