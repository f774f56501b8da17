"""Decoder layers of the Llama pattern as one call of the kernels each.

On a CPU the way through a layer's modules costs as much as its products do where there are few rows: 1 ms of 2.7 in
the shape of SmolLM2-135M at 8 rows, which leaves 0.05 here.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from distllm.engine.attention.interface import AttentionBatch
from distllm.engine.attention.paged_cpu import PagedCpuAttention
from distllm.engine.injection.attention import PagedLayer, layer_of
from distllm.engine.injection.fused import FusedAttention, FusedGatedMLP, FusedRMSNorm
from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.injection.policies import DECODER_LAYER
from distllm.engine.kernels.decoder_layer import DecoderLayer, LayerParts, Norm, Projection, StepRows
from distllm.engine.kernels.ops import CpuKernels
from distllm.engine.kernels.quantized import QuantizedPanels


def fuse_layers(model: nn.Module, kernels: CpuKernels) -> None:
    """Give the decoder layers of `model` a forward of one call, where policies name them and their parts are fused.

    The modules stay what they are, with their attributes and hooks.
    """
    steps = _Steps(kernels)
    found = [(module, _parts_of(module)) for module in model.modules()]
    layers = [(module, DecoderLayer(kernels, parts)) for module, parts in found if parts is not None]
    for number, (module, kernel) in enumerate(layers):
        module.forward = FusedLayer(module, kernel, steps, is_last=number == len(layers) - 1)


class FusedLayer:
    """Stands in for a decoder layer's forward, to which it leads where attention is not the kernels' own."""

    def __init__(self, original: Any, kernel: DecoderLayer, steps: "_Steps", *, is_last: bool) -> None:
        self._plain: Callable[..., Tensor] = original.forward
        self._attention: FusedAttention = original.self_attn
        self._kernel = kernel
        self._steps = steps
        self._is_last = is_last

    def __call__(
        self, hidden_states: Tensor, *args: Any, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Tensor:
        """hidden_states [1, num_tokens, hidden] -> the same shape."""
        layer = layer_of(self._attention)
        if not self._is_paged(layer) or hidden_states.dtype != self._kernel.dtype:
            return self._plain(hidden_states, *args, position_embeddings=position_embeddings, **kwargs)
        paged = cast(PagedLayer, layer)
        assert paged.cache.batch is not None, "attention was called outside a step"
        rows = self._steps.rows_of(paged.cache.batch, position_embeddings)
        if self._is_last:
            self._steps.forget()
        return self._kernel(hidden_states.squeeze(0), paged.kv, rows).unsqueeze(0)

    def _is_paged(self, layer: Any) -> bool:
        return isinstance(layer, PagedLayer) and isinstance(layer.cache.backend, PagedCpuAttention)


class _Steps:
    """What the layers share of the step under way, made by the first of them."""

    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels
        self._key: tuple[AttentionBatch, tuple[Tensor, Tensor]] | None = None
        self._rows: StepRows | None = None

    def rows_of(self, batch: AttentionBatch, rotation: tuple[Tensor, Tensor]) -> StepRows:
        if self._rows is None or self._key is None or self._key[0] is not batch or self._key[1] is not rotation:
            cos, sin = (table.squeeze(0) for table in rotation)
            self._key = batch, rotation
            self._rows = StepRows(
                self._kernels,
                (cos, sin),
                batch.query_starts,
                batch.num_computed,
                batch.block_tables,
                batch.slot_mapping,
            )
        return self._rows

    def forget(self) -> None:
        """Keep no memory between steps."""
        self._key = self._rows = None


def _parts_of(module: Any) -> LayerParts | None:
    """What one call needs of a decoder layer; None where that would not be all that the layer does."""
    if type(module).__name__ not in DECODER_LAYER or not _is_fused(module):
        return None
    attention, mlp = module.self_attn, module.mlp
    call, head_dim = attention.call, attention.shape.key_dim
    return LayerParts(
        input_norm=_norm(module.input_layernorm),
        mlp_norm=_norm(module.post_attention_layernorm),
        query_norm=None if attention.q_norm is None else _norm(attention.q_norm),
        key_norm=None if attention.k_norm is None else _norm(attention.k_norm),
        qkv=Projection(attention.qkv_weight.panels, attention.qkv_bias),
        out=Projection(attention.o_proj.weight.panels, attention.o_proj.bias),
        gate_up=Projection(mlp.gate_up_weight.panels, mlp.gate_up_bias),
        down=Projection(mlp.down_proj.weight.panels, mlp.down_proj.bias),
        activation=mlp.activation,
        num_heads=attention.o_proj.weight.panels.in_features // head_dim,
        num_kv_heads=attention.shape.num_kv_heads,
        head_dim=head_dim,
        scale=call.scale,
        sliding_window=call.sliding_window,
        softcap=call.softcap,
        sinks=call.sinks,
    )


def _is_fused(module: Any) -> bool:
    """Whether all parts of a layer are the kernels' own, undivided and here, and nobody watches one of them."""
    attention, mlp = module.self_attn, module.mlp
    if not isinstance(attention, FusedAttention) or not isinstance(mlp, FusedGatedMLP):
        return False
    norms = [module.input_layernorm, module.post_attention_layernorm]
    norms += [norm for norm in (attention.q_norm, attention.k_norm) if norm is not None]
    linears = [attention.o_proj, mlp.down_proj]
    if any(type(linear) is not nn.Linear for linear in linears):
        return False
    inner = [attention, mlp, *norms, *linears]
    weights = [attention.qkv_weight, mlp.gate_up_weight, *(linear.weight for linear in linears)]
    return (
        all(isinstance(norm, FusedRMSNorm) for norm in norms)
        and all(isinstance(weight, PackedWeight) and _is_in_order(weight) for weight in weights)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in inner)
    )


def _is_in_order(weight: PackedWeight) -> bool:
    """Whether a product reads its input's columns as they lie, and gives all that was packed."""
    panels = weight.panels
    return weight.rows is None and not (isinstance(panels, QuantizedPanels) and panels.input_order is not None)


def _norm(norm: FusedRMSNorm) -> Norm:
    return Norm(norm.weight, norm.eps, norm.style)
