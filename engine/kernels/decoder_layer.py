"""A whole decoder layer of the Llama pattern as one call of the CPU kernels, to the bits of its single operations.

The structures are those of src/decoder_layer.h, field by field.
"""

from collections.abc import Iterator, Sequence
from ctypes import Structure, addressof, c_float, c_int32, c_ssize_t, c_void_p
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distllm.engine.kernels.checks import (
    DTYPE_CODES,
    KV_CODES,
    as_sinks,
    check_batch,
    check_bias,
    check_caches,
    check_rows,
    check_scales,
    check_tables,
    describe,
)
from distllm.engine.kernels.ops import CpuKernels, NormStyle, linear_kind
from distllm.engine.kernels.packed import PackedLinear
from distllm.engine.kernels.quantized import FORMATS, PRODUCTS, QuantizedPanels

Activation = Literal["silu_mul", "gelu_tanh_mul"]

_ACTIVATIONS: dict[Activation, int] = {"silu_mul": 0, "gelu_tanh_mul": 1}  # as activation.cpp numbers them


@dataclass(frozen=True, slots=True)
class Norm:
    """As CpuKernels.rms_norm takes it."""

    weight: Tensor
    eps: float
    style: NormStyle


@dataclass(frozen=True, slots=True)
class Projection:
    """As CpuKernels.linear or quantized_linear takes it; without an input order."""

    panels: PackedLinear | QuantizedPanels
    bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    """h = x + out(attend(rotate(qkv(input_norm(x))))); h + down(activation(gate_up(mlp_norm(h)))).

    Query and key heads are normed before they are rotated where there are norms for them. `scale` to `sinks` are
    those of CpuKernels.paged_attention.
    """

    input_norm: Norm
    mlp_norm: Norm
    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection
    activation: Activation
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("type", c_int32), ("is_gemma", c_int32), ("eps", c_float))


class _Product(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("weight", "bias", "scales", "zeros")),
        *((name, c_int32) for name in ("kind", "bias_type", "scale_type", "codes", "is_rounded", "group")),
        *((name, c_int32) for name in ("depth", "features")),
    )


class _Layer(Structure):
    _fields_ = (
        *((name, _Norm) for name in ("input_norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, _Product) for name in ("qkv", "out", "gate_up", "down")),
        ("sinks", c_void_p),
        *((name, c_float) for name in ("scale", "softcap")),
        *((name, c_int32) for name in ("window", "activation", "type")),
        *((name, c_int32) for name in ("num_heads", "num_kv_heads", "head_dim")),
    )


class _Cache(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, c_int32) for name in ("type", "codes", "kind")),
    )


class _Step(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("cos", "sin", "slots", "query_starts", "num_computed", "block_tables")),
        ("scratch", c_void_p),
        *((name, c_ssize_t) for name in ("rotary_stride", "table_stride")),
        *((name, c_int32) for name in ("rotary_width", "num_rows", "num_sequences")),
    )


class StepRows:
    """What the layers of one step share: where its rows lie, how they are rotated, and room to work in.

    cos and sin are those of CpuKernels.rotary, the batch's tensors those of paged_attention, and slots those of
    write_kv. Raises ValueError where they do not go together.
    """

    def __init__(
        self,
        kernels: CpuKernels,
        rotation: tuple[Tensor, Tensor],
        query_starts: Tensor,
        num_computed: Tensor,
        block_tables: Tensor,
        slots: Tensor,
    ) -> None:
        cos, sin = rotation
        self.num_rows, self.dtype = cos.shape[0], cos.dtype
        check_tables(cos, sin, self.num_rows, self.dtype)
        if cos.shape[1] % 2:
            raise ValueError(f"cos: the width must be even, got {describe(cos)}")
        num_sequences = check_batch(query_starts, num_computed, block_tables)
        self._kernels = kernels
        self._kept = (cos, sin, query_starts, num_computed, block_tables, slots)
        self._num_blocks: int | None = None  # of the pool that all of this was found to fit
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self.struct = _Step(
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            slots=slots.data_ptr(),
            query_starts=query_starts.data_ptr(),
            num_computed=num_computed.data_ptr(),
            block_tables=block_tables.data_ptr(),
            rotary_stride=cos.stride(0),
            table_stride=block_tables.stride(0),
            rotary_width=cos.shape[1],
            num_rows=self.num_rows,
            num_sequences=num_sequences,
        )

    def check_pool(self, num_blocks: int) -> None:
        """Raises ValueError where a row or a block is outside a pool of so many."""
        if num_blocks != self._num_blocks:
            _, _, query_starts, num_computed, block_tables, slots = self._kept
            self._kernels.check_slots(slots, self.num_rows, num_blocks)
            self._kernels.check_blocks(query_starts, num_computed, block_tables, self.num_rows, num_blocks)
            self._num_blocks = num_blocks

    def make_room(self, num_bytes: int) -> None:
        """Have so much scratch memory. Layers run one after the other, so one piece does for all."""
        if num_bytes > self._scratch.numel():
            self._scratch = torch.empty(num_bytes, dtype=torch.uint8)
            self.struct.scratch = self._scratch.data_ptr()


class DecoderLayer:
    """Its weights may lie elsewhere at each call, as those that are streamed do.

    Raises ValueError where `parts` do not go together.
    """

    def __init__(self, kernels: CpuKernels, parts: LayerParts) -> None:
        self.dtype = parts.qkv.panels.dtype
        self._kernels = kernels
        self._parts = parts
        self._tensors = list(_tensors_of(parts))
        self._pointers: list[int] = []  # to the tensors, as the structure has them
        self._struct = _Layer()
        self._head_dim = parts.head_dim
        self._width = parts.qkv.panels.in_features
        self._num_scratch_bytes: tuple[int, int] = (0, 0)  # for so many rows
        self._kv: Sequence[Tensor] | None = None
        self._cache = _Cache()
        _check_widths(parts)
        self._sinks = None if parts.sinks is None else as_sinks(parts.sinks, parts.num_heads)

    def __call__(self, x: Tensor, kv: Sequence[Tensor], rows: StepRows) -> Tensor:
        """x [T, hidden] of the layer's type -> a new tensor of the same shape. `kv` is what allocate_kv made."""
        check_rows("x", x, self._width)
        if (x.shape[0], x.dtype, rows.dtype) != (rows.num_rows, self.dtype, self.dtype):
            raise ValueError(f"x: {describe(x)} does not go with {rows.num_rows} rows of {rows.dtype}")
        if rows.struct.rotary_width > self._head_dim:
            raise ValueError(f"cos: cannot turn {rows.struct.rotary_width} of {self._head_dim} dimensions")
        pointers = [tensor.data_ptr() for tensor in self._tensors]
        if pointers != self._pointers:
            self._struct, self._pointers = self._describe(self._parts), pointers
        if kv is not self._kv:
            self._cache, self._kv = self._describe_cache(kv), kv
        rows.check_pool(kv[0].shape[0])
        rows.make_room(self._scratch_bytes(rows.num_rows))
        x = x.contiguous()
        out = torch.empty_like(x)
        self._kernels.call(
            "decoder_layer",
            *(addressof(self._struct), addressof(self._cache), addressof(rows.struct)),
            *(x.data_ptr(), out.data_ptr()),
        )
        return out

    def _scratch_bytes(self, num_rows: int) -> int:
        if self._num_scratch_bytes[0] != num_rows:
            self._num_scratch_bytes = num_rows, self._kernels.scratch_bytes(addressof(self._struct), num_rows)
        return self._num_scratch_bytes[1]

    def _describe(self, parts: LayerParts) -> _Layer:
        return _Layer(
            input_norm=_norm(parts.input_norm, self._width),
            mlp_norm=_norm(parts.mlp_norm, self._width),
            query_norm=_norm(parts.query_norm, parts.head_dim),
            key_norm=_norm(parts.key_norm, parts.head_dim),
            qkv=_product(parts.qkv, self.dtype),
            out=_product(parts.out, self.dtype),
            gate_up=_product(parts.gate_up, self.dtype),
            down=_product(parts.down, self.dtype),
            sinks=None if self._sinks is None else self._sinks.data_ptr(),
            scale=parts.scale,
            softcap=parts.softcap or 0.0,
            window=parts.sliding_window or 0,
            activation=_ACTIVATIONS[parts.activation],
            type=DTYPE_CODES[self.dtype],
            num_heads=parts.num_heads,
            num_kv_heads=parts.num_kv_heads,
            head_dim=parts.head_dim,
        )

    def _describe_cache(self, kv: Sequence[Tensor]) -> _Cache:
        keys, values, *scales = kv
        check_caches(keys, values, self._head_dim)
        check_scales(tuple(scales), keys)
        if tuple(values.shape[1:3]) != (self._parts.num_kv_heads, self._head_dim):
            raise ValueError(f"kv: {describe(values)} is not this layer's")
        key_scales, value_scales = [each.data_ptr() for each in scales] or (None, None)
        return _Cache(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            key_scales=key_scales,
            value_scales=value_scales,
            type=DTYPE_CODES.get(keys.dtype, 0),
            codes=KV_CODES[keys.dtype],
            kind=self._kernels.attention_kind(self.dtype, keys.dtype),
        )


def _tensors_of(parts: LayerParts) -> Iterator[Tensor]:
    """All that a layer's structure points to, but for sinks, of which the layer has a copy."""
    for norm in (parts.input_norm, parts.mlp_norm, parts.query_norm, parts.key_norm):
        if norm is not None:
            yield norm.weight
    for projection in (parts.qkv, parts.out, parts.gate_up, parts.down):
        panels = projection.panels
        if isinstance(panels, PackedLinear):
            found: tuple[Tensor | None, ...] = (panels.panels, projection.bias)
        else:
            found = (panels.codes, panels.scales, panels.zeros, projection.bias)
        yield from (tensor for tensor in found if tensor is not None)


def _check_widths(parts: LayerParts) -> None:
    """That every product takes what the one before gives."""
    hidden, heads = parts.qkv.panels.in_features, parts.num_heads * parts.head_dim
    kv_heads = parts.num_kv_heads * parts.head_dim
    expected = {
        "qkv": (hidden, heads + 2 * kv_heads),
        "out": (heads, hidden),
        "gate_up": (hidden, 2 * parts.down.panels.in_features),
        "down": (parts.down.panels.in_features, hidden),
    }
    for name, (depth, features) in expected.items():
        panels = getattr(parts, name).panels
        if (panels.in_features, panels.out_features) != (depth, features):
            raise ValueError(f"{name}: expected a weight [{features}, {depth}]")
        if panels.dtype != parts.qkv.panels.dtype:
            raise ValueError(f"{name}: {panels.dtype} does not go with {parts.qkv.panels.dtype}")
    if parts.num_heads % parts.num_kv_heads or (parts.query_norm is None) != (parts.key_norm is None):
        raise ValueError("heads: query and key heads do not go together")


def _norm(norm: Norm | None, width: int) -> _Norm:
    if norm is None:
        return _Norm()
    check_bias(norm.weight, width)
    return _Norm(norm.weight.data_ptr(), DTYPE_CODES[norm.weight.dtype], norm.style == "gemma", norm.eps)


def _product(projection: Projection, dtype: torch.dtype) -> _Product:
    panels, bias = projection.panels, projection.bias
    check_bias(bias, panels.out_features)
    common = {
        "bias": None if bias is None else bias.data_ptr(),
        "bias_type": 0 if bias is None else DTYPE_CODES[bias.dtype],
        "depth": panels.in_features,
        "features": panels.out_features,
    }
    if isinstance(panels, PackedLinear):
        return _Product(weight=panels.panels.data_ptr(), kind=linear_kind(panels, dtype), **common)
    return _Product(
        weight=panels.codes.data_ptr(),
        scales=panels.scales.data_ptr(),
        zeros=None if panels.zeros is None else panels.zeros.data_ptr(),
        kind=PRODUCTS[panels.variant],
        scale_type=DTYPE_CODES[panels.scales.dtype],
        codes=FORMATS[panels.format],
        is_rounded=panels.is_dynamic,
        group=panels.group_size,
        **common,
    )
