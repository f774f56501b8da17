"""Paged attention on the compiled CPU kernels: row-invariant, over block tables, without gathering the cache."""

import torch
from torch import Tensor

from distllm.engine.attention.interface import AttentionBatch, AttentionCall, LayerKV
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.kernels.ops import CpuKernels


class PagedCpuAttention:
    """AttentionBackend over CpuKernels, whose allocate_kv owns the layout. float32 or bf16 on the CPU."""

    name = "paged_cpu"
    is_row_invariant = True

    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels

    def allocate(
        self, num_blocks: int, num_kv_heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
    ) -> LayerKV:
        return LayerKV(self._kernels.allocate_kv(num_blocks, num_kv_heads, key_dim, value_dim, dtype))

    def write(self, layer_kv: LayerKV, keys: Tensor, values: Tensor, batch: AttentionBatch) -> None:
        _check_block_size(batch)
        self._kernels.write_kv(keys, values, *layer_kv, batch.slot_mapping)

    def attend(self, query: Tensor, layer_kv: LayerKV, batch: AttentionBatch, call: AttentionCall) -> Tensor:
        _check_block_size(batch)
        keys, values, *scales = layer_kv
        return self._kernels.paged_attention(
            query,
            keys,
            values,
            batch.query_starts,
            batch.num_computed,
            batch.block_tables,
            scale=call.scale,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
            sinks=call.sinks,
            kv_scales=tuple(scales),
        )


def _check_block_size(batch: AttentionBatch) -> None:
    if batch.block_size != BLOCK_SIZE:
        raise ValueError(f"block_size: the CPU kernels have blocks of {BLOCK_SIZE} tokens, got {batch.block_size}")
