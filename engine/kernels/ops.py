"""The CPU kernels on tensors: the one file where torch meets pointers.

Shapes, types, strides and bounds are checked here and raise ValueError; the C++ behind trusts its pointers. Every
operation is row-invariant: the bits of a row are a function of its own inputs, whatever rows, threads or chunks are
beside it.
"""

import math
import mmap
import os
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.kernels.checks import (
    DTYPE_CODES,
    KV_CODES,
    as_sinks,
    check_batch,
    check_bias,
    check_caches,
    check_dtype,
    check_heads,
    check_indices,
    check_output,
    check_parts,
    check_rows,
    check_scales,
    check_tables,
    describe,
)
from distllm.engine.kernels.library import KernelLibrary, KernelsUnavailable, load_library
from distllm.engine.kernels.packed import Bf16Variant, PackedLinear
from distllm.engine.kernels.timing import faster_variant

NormStyle = Literal["llama", "gemma"]

_FLOAT32, _BF16, _BF16_DOT, _INT8 = 0, 1, 2, 3  # kinds of panels, as panel.h numbers them


def load_kernels(
    isa: str | None = None, num_threads: int | None = None, directory: Path | None = None
) -> "CpuKernels | KernelsUnavailable":
    """The kernels of instruction level `isa`, or of the best this CPU runs, on `num_threads` threads (default: as
    many as there are cores to run on)."""
    library = load_library(isa, directory)
    if isinstance(library, KernelsUnavailable):
        return library
    return CpuKernels(library, num_threads or len(os.sched_getaffinity(0)))


def linear_kind(packed: PackedLinear, dtype: torch.dtype) -> int:
    """How inputs of `dtype` meet a weight, as panel.h numbers it."""
    if packed.dtype != torch.bfloat16:
        return _FLOAT32
    return _BF16_DOT if packed.variant == "dot" and dtype == torch.bfloat16 else _BF16


class CpuKernels:
    """Operations of one instruction level on one pool of threads. Safe to call from several threads in turn."""

    def __init__(self, library: KernelLibrary, num_threads: int) -> None:
        self.isa = library.level
        self._c = library.functions
        self._start_pool(num_threads)

    @property
    def num_threads(self) -> int:
        return self._num_threads

    @num_threads.setter
    def num_threads(self, num_threads: int) -> None:
        """Not while another thread is in a call."""
        end_old_pool = self._end_pool
        self._start_pool(num_threads)
        end_old_pool()

    @cached_property
    def has_bf16_dot(self) -> bool:
        return self.isa == "avx512bf16"

    @cached_property
    def bf16_variant(self) -> Bf16Variant:
        """What pack_linear and attention take for bf16 unless told: measured once a process, in under 100 ms."""
        return self.fastest_bf16_variant()

    def fastest_bf16_variant(self) -> Bf16Variant:
        """Times both variants for 1 and for 16 rows on this CPU."""
        return faster_variant(self) if self.has_bf16_dot else "fma"

    @property
    def numerics(self) -> str:
        """Names the order of sums and the instruction: equal names give equal bits for equal weights."""
        add = "muladd" if self.isa == "portable" else "fma"
        return f"cpu1-{add}-span512-{self.bf16_variant}"

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory that will be streamed, on huge pages where the system gives them."""
        tensor = torch.empty(*shape, dtype=dtype)
        self._c.distllm_advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
        return tensor

    def pack_linear(self, weight: Tensor | Sequence[Tensor], variant: Bf16Variant | None = None) -> PackedLinear:
        """Packs weight [N, K], or several [N_i, K] one after the other along N. bf16 or float32, any strides."""
        parts = [weight] if isinstance(weight, Tensor) else list(weight)
        dtype, depth = check_parts(parts)
        features = sum(part.shape[0] for part in parts)
        size = self._c.distllm_packed_bytes(features, depth, DTYPE_CODES[dtype])
        panels = self.empty(size // dtype.itemsize, dtype=dtype)
        self._zero_padding(panels, features, depth)
        first_row = 0
        for part in parts:
            self.call(
                "pack",
                part.data_ptr(),
                *part.stride(),
                *part.shape,
                DTYPE_CODES[dtype],
                first_row,
                panels.data_ptr(),
            )
            first_row += part.shape[0]
        chosen = variant or self.bf16_variant if dtype == torch.bfloat16 else "fma"
        if chosen == "dot" and not self.has_bf16_dot:
            raise ValueError(f"variant: {self.isa} kernels have no bf16 dot products; use 'fma'")
        return PackedLinear(panels, features, depth, dtype, chosen)

    def linear(
        self, x: Tensor, packed: PackedLinear, bias: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """x [T, K] float32 or bf16 times packed [N, K], plus bias [N]: [T, N] of x's dtype, or of out's.

        Sums are float32. float32 inputs meet bf16 weights by "fma", whatever the variant: rounding them would lose.
        """
        check_rows("x", x, packed.in_features)
        check_bias(bias, packed.out_features)
        out = check_output(out, x, packed.out_features)
        self.call(
            "linear",
            *(
                linear_kind(packed, x.dtype),
                x.data_ptr(),
                x.stride(0),
                DTYPE_CODES[x.dtype],
                packed.panels.data_ptr(),
            ),
            *((None, 0) if bias is None else (bias.data_ptr(), DTYPE_CODES[bias.dtype])),
            *(out.data_ptr(), out.stride(0), DTYPE_CODES[out.dtype]),
            *(x.shape[0], packed.in_features, packed.out_features),
        )
        return out

    def linear_rows(self, packed: PackedLinear, ids: Tensor) -> Tensor:
        """Rows `ids` [T] (int64) of the weight, exactly as they were packed: [T, K]."""
        check_indices("ids", ids, torch.int64, ids.numel())
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= packed.out_features):
            raise ValueError(f"ids: rows run from 0 to {packed.out_features - 1}")
        out = torch.empty(ids.shape[0], packed.in_features, dtype=packed.dtype)
        self.call(
            "read_rows",
            *(packed.panels.data_ptr(), packed.in_features, DTYPE_CODES[packed.dtype]),
            *(ids.data_ptr(), ids.shape[0], out.data_ptr()),
        )
        return out

    def allocate_kv(
        self, num_blocks: int, num_kv_heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        """Zeroed caches of keys and values for write_kv and paged_attention; blocks are the first dimension.

        Of int8 and float8_e4m3fn, the scales of keys and values [blocks, heads, 16] follow.
        """
        if dtype not in KV_CODES:
            raise ValueError(f"dtype: expected float32, bfloat16, int8 or float8_e4m3fn, got {dtype}")
        keys = self._zeros(num_blocks, num_kv_heads, key_dim + key_dim % 2, BLOCK_SIZE, dtype=dtype)
        values = self._zeros(num_blocks, num_kv_heads, value_dim, BLOCK_SIZE, dtype=dtype)
        if not KV_CODES[dtype]:
            return keys, values
        scales = [self._zeros(num_blocks, num_kv_heads, BLOCK_SIZE, dtype=torch.float32) for _ in range(2)]
        return keys, values, *scales

    def write_kv(
        self, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, *scales_and_slots: Tensor
    ) -> None:
        """Stores keys [T, heads, key_dim] and values [T, heads, value_dim] at slots [T] (int64).

        The slots come last, after the scales of a cache that has them. A slot is block * 16 + offset. No two rows
        may share one.
        """
        *scales, slots = scales_and_slots
        check_heads("keys", keys)
        check_heads("values", values)
        check_caches(key_cache, value_cache, keys.shape[2])
        num_rows, num_heads, value_dim = values.shape
        if keys.shape[:2] != values.shape[:2] or keys.dtype != values.dtype:
            raise ValueError(f"values: {describe(values)} does not go with keys: {describe(keys)}")
        if (num_heads, value_dim) != tuple(value_cache.shape[1:3]):
            raise ValueError(f"values: {describe(values)} does not fit the cache: {describe(value_cache)}")
        self.check_slots(slots, num_rows, key_cache.shape[0])
        check_scales(tuple(scales), key_cache)
        codes = KV_CODES[key_cache.dtype]
        self.call(
            "write_kv_codes" if codes else "write_kv",
            *(keys.data_ptr(), keys.stride(0), keys.stride(1)),
            *(values.data_ptr(), values.stride(0), values.stride(1), DTYPE_CODES[keys.dtype]),
            *(key_cache.data_ptr(), value_cache.data_ptr(), codes or DTYPE_CODES[key_cache.dtype]),
            *(*(each.data_ptr() for each in scales), slots.data_ptr()),
            *(num_rows, num_heads, keys.shape[2], value_dim),
        )

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        query_starts: Tensor,
        num_computed: Tensor,
        block_tables: Tensor,
        *,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        kv_scales: tuple[Tensor, ...] = (),
        out: Tensor | None = None,
    ) -> Tensor:
        """query [T, heads, key_dim] over the sequences' blocks: [T, heads, value_dim] of query's dtype.

        Rows of sequence s are query_starts[s] .. query_starts[s + 1], the first at position num_computed[s]; row i
        sees positions 0 .. num_computed[s] + i, of which the last `sliding_window`. All three tensors are int32,
        block_tables [sequences, most blocks]. Rows of no sequence are left as they are. `kv_scales` are those of
        keys and values, of a cache that has them.
        """
        check_heads("query", query)
        check_caches(key_cache, value_cache, query.shape[2])
        num_rows, num_heads, key_dim = query.shape
        num_blocks, num_kv_heads, value_dim, _ = value_cache.shape
        if num_heads % num_kv_heads:
            raise ValueError(f"query: {num_heads} heads cannot share {num_kv_heads} kv heads evenly")
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(f"sliding_window: expected at least 1, got {sliding_window}")
        if out is None:
            out = torch.empty(num_rows, num_heads, value_dim, dtype=query.dtype)
        else:
            check_heads("out", out)
            if out.shape != (num_rows, num_heads, value_dim) or out.dtype != query.dtype:
                raise ValueError(f"out: {describe(out)} cannot take the attention of {describe(query)}")
        num_sequences = check_batch(query_starts, num_computed, block_tables)
        self.check_blocks(query_starts, num_computed, block_tables, num_rows, num_blocks)
        sinks = None if sinks is None else as_sinks(sinks, num_heads)
        check_scales(kv_scales, key_cache)
        self.call(
            "attend",
            *(
                self.attention_kind(query.dtype, key_cache.dtype),
                query.data_ptr(),
                query.stride(0),
                query.stride(1),
            ),
            *(DTYPE_CODES[query.dtype], key_cache.data_ptr(), value_cache.data_ptr()),
            *(out.data_ptr(), out.stride(0), out.stride(1), query_starts.data_ptr(), num_computed.data_ptr()),
            *(block_tables.data_ptr(), block_tables.stride(0), num_sequences, num_heads, num_kv_heads),
            *(key_dim, value_dim, scale, softcap or 0.0, sliding_window or 0),
            *(None if sinks is None else sinks.data_ptr(), KV_CODES[key_cache.dtype]),
            *([each.data_ptr() for each in kv_scales] or (None, None)),
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, style: NormStyle = "llama") -> Tensor:
        """x [T, H] or [T, heads, H], normed over H in float32: a new tensor of x's type.

        "llama": weight * normed.to(x.dtype). "gemma": (normed * (1 + weight)).to(x.dtype).
        """
        check_dtype("weight", weight)
        heads = x.unsqueeze(1) if x.dim() == 2 else x
        check_heads("x", heads)
        num_rows, num_heads, width = heads.shape
        if weight.shape != (width,) or weight.stride(0) != 1:
            raise ValueError(f"weight: expected {width} contiguous elements, got {describe(weight)}")
        out = torch.empty(x.shape, dtype=x.dtype)
        self.call(
            "rms_norm",
            *(heads.data_ptr(), heads.stride(0), heads.stride(1), DTYPE_CODES[x.dtype]),
            *(weight.data_ptr(), DTYPE_CODES[weight.dtype], style == "gemma", eps),
            *(out.data_ptr(), num_rows, num_heads, width),
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of rows gate_up [T, 2 I]: [T, I]. The first factor is rounded to the rows' type."""
        return self._gated(0, gate_up)

    def gelu_tanh_mul(self, gate_up: Tensor) -> Tensor:
        """As silu_mul, with the tanh form of GELU."""
        return self._gated(1, gate_up)

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turns x [T, heads, dim] in place by cos and sin [T, width], width <= dim, of x's type.

        transformers' rotate-half convention; dimensions past `width` stay. x may be a view, as of fused qkv.
        """
        check_heads("x", x)
        num_rows, num_heads, dim = x.shape
        check_tables(cos, sin, num_rows, x.dtype)
        width = cos.shape[1]
        if width > dim or width % 2:
            raise ValueError(f"cos: cannot turn {width} of {dim} dimensions; the width must be even and fit")
        self.call(
            "rotary",
            *(x.data_ptr(), x.stride(0), x.stride(1), DTYPE_CODES[x.dtype]),
            *(cos.data_ptr(), sin.data_ptr(), cos.stride(0), num_rows, num_heads, width),
        )

    def scratch_bytes(self, layer: int, num_rows: int) -> int:
        """What a layer of decoder_layer.py, given by its address, works in with so many rows."""
        return int(self._c.distllm_decoder_layer_scratch(layer, num_rows))

    def attention_kind(self, dtype: torch.dtype, cache_dtype: torch.dtype) -> int:
        """How queries of `dtype` meet a cache, as panel.h numbers it."""
        if cache_dtype == torch.float32:
            return _FLOAT32
        if cache_dtype == torch.int8:
            return _INT8
        return _BF16_DOT if dtype == torch.bfloat16 and self.bf16_variant == "dot" else _BF16

    def check_slots(self, slots: Tensor, num_rows: int, num_blocks: int) -> None:
        """Raises ValueError unless there is a slot in the pool for each row."""
        check_indices("slots", slots, torch.int64, num_rows)
        bad = self._c.distllm_first_bad_slot(slots.data_ptr(), num_rows, num_blocks)
        if bad >= 0:
            raise ValueError(f"slots: slot {int(slots[bad])} of row {bad} is outside {num_blocks} blocks")

    def check_blocks(
        self, query_starts: Tensor, num_computed: Tensor, tables: Tensor, num_rows: int, num_blocks: int
    ) -> None:
        """Raises ValueError where a sequence's rows are not there, or its blocks not in the pool."""
        bad = self._c.distllm_first_bad_sequence(
            *(query_starts.data_ptr(), num_computed.data_ptr(), tables.data_ptr(), tables.stride(0)),
            *(tables.shape[1], num_computed.shape[0], num_rows, num_blocks),
        )
        if bad >= 0:
            raise ValueError(
                f"batch: rows or blocks of sequence {bad} are outside {num_rows} rows, {num_blocks} blocks"
            )

    def _gated(self, activation: int, gate_up: Tensor) -> Tensor:
        check_rows("gate_up", gate_up, gate_up.shape[-1])
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        if gate_up.shape[1] % 2:
            raise ValueError(f"gate_up: expected an even number of columns, got {gate_up.shape[1]}")
        out = torch.empty(num_rows, width, dtype=gate_up.dtype)
        self.call(
            "gated",
            *(activation, gate_up.data_ptr(), gate_up.stride(0), DTYPE_CODES[gate_up.dtype]),
            *(out.data_ptr(), num_rows, width),
        )
        return out

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeroed memory on huge pages, which takes up none until it is written."""
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        tensor = torch.frombuffer(memory, dtype=dtype).view(shape)
        self._c.distllm_advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
        return tensor

    def _zero_padding(self, panels: Tensor, features: int, depth: int) -> None:
        if depth % 2:
            panels.zero_()
        elif features % 16:
            panels[-depth * 16 :].zero_()

    def call(self, name: str, *arguments: int | float | None) -> None:
        """A function of library.py on this pool. Trusts its arguments; MemoryError where scratch space lacks."""
        if getattr(self._c, f"distllm_{name}")(self._pool, *arguments):
            raise MemoryError(f"no memory for the scratch space of {name}")

    def _start_pool(self, num_threads: int) -> None:
        if not 1 <= num_threads <= 1024:
            raise ValueError(f"num_threads: expected 1 to 1024, got {num_threads}")
        self._pool = self._c.distllm_pool_new(num_threads)
        if not self._pool:
            raise RuntimeError(f"cannot start {num_threads} threads")
        self._num_threads = num_threads
        self._end_pool = weakref.finalize(self, self._c.distllm_pool_delete, self._pool)
        self._end_pool.atexit = False  # the process's end takes the threads with it, whatever they do
