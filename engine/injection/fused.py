"""Modules that take the place of transformers' own where several of its operations become one kernel.

They are built from the module that they replace, after its weights were packed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distllm.engine.attention.interface import AttentionCall
from distllm.engine.injection.attention import LayerShape, attend
from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.injection.policies import GATE_UP, QKV
from distllm.engine.kernels.decoder_layer import Activation
from distllm.engine.kernels.ops import CpuKernels, NormStyle


class FusedAttention(nn.Module):
    """Attention of the Llama pattern: one product for q, k and v, which are rotated where they lie.

    `call` is what the replaced module was seen to ask for: scale, window, softcap, sinks.
    """

    def __init__(self, original: Any, shape: LayerShape, call: AttentionCall, kernels: CpuKernels) -> None:
        super().__init__()
        layers = [original.get_submodule(name) for name in QKV]
        self.q_norm: nn.Module | None = getattr(original, "q_norm", None)
        self.k_norm: nn.Module | None = getattr(original, "k_norm", None)
        self.o_proj = original.get_submodule("o_proj")
        self.qkv_weight = _whole_weight(layers)
        self.qkv_bias = _whole_bias(layers)
        self.shape = shape
        self.call = call
        self._kernels = kernels

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, None]:
        """hidden_states [1, num_tokens, hidden] -> the same shape, and no attention weights."""
        qkv = self.qkv_weight.project(hidden_states.squeeze(0), self.qkv_bias)
        heads = qkv.view(qkv.shape[0], -1, self.shape.key_dim)  # [num_tokens, query | key | value heads, dim]
        num_kv = self.shape.num_kv_heads
        query, keys, values = heads[:, : -2 * num_kv], heads[:, -2 * num_kv : -num_kv], heads[:, -num_kv:]
        cos, sin = (table.squeeze(0) for table in position_embeddings)
        if self.q_norm is not None and self.k_norm is not None:
            query, keys = self.q_norm(query), self.k_norm(keys)
            self._kernels.rotary(query, cos, sin)
            self._kernels.rotary(keys, cos, sin)
        else:
            self._kernels.rotary(heads[:, :-num_kv], cos, sin)
        output = attend(self, query, keys, values, self.call)
        return self.o_proj(output.flatten(1).unsqueeze(0)), None


class FusedGatedMLP(nn.Module):
    """down_proj(activation(gate) * up), gate and up in one product."""

    def __init__(self, original: Any, activation: Activation, kernels: CpuKernels) -> None:
        super().__init__()
        layers = [original.get_submodule(name) for name in GATE_UP]
        self.down_proj = original.get_submodule("down_proj")
        self.gate_up_weight = _whole_weight(layers)
        self.gate_up_bias = _whole_bias(layers)
        self.activation = activation
        self._gate: Callable[[Tensor], Tensor] = getattr(kernels, activation)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]"""
        rows = self.gate_up_weight.project(x.reshape(-1, x.shape[-1]), self.gate_up_bias)
        output: Tensor = self.down_proj(self._gate(rows))
        return output.view(x.shape)


class FusedRMSNorm(nn.Module):
    """Root-mean-square norm of the last dimension."""

    def __init__(self, original: Any, style: NormStyle, kernels: CpuKernels) -> None:
        super().__init__()
        self.weight = original.weight
        self.eps = float(original.eps if style == "gemma" else original.variance_epsilon)
        self.style = style
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, heads, dim], or with a leading 1: [1, num_tokens, hidden], [1, heads, num_tokens, dim]."""
        rows = x.squeeze(0) if x.shape[0] == 1 else x
        return self._kernels.rms_norm(rows, self.weight, self.eps, self.style).view(x.shape)


def _whole_weight(layers: Sequence[Any]) -> PackedWeight:
    """The weight of which each layer has its rows."""
    first = layers[0].weight
    assert isinstance(first, PackedWeight)
    return PackedWeight(first.kernels, first.panels)


def _whole_bias(layers: Sequence[Any]) -> Tensor | None:
    return None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
