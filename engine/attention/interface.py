"""What a paged attention backend is: it owns the layout of a layer's KV, writes it and attends over it."""

from dataclasses import dataclass
from typing import NewType, Protocol

import torch
from torch import Tensor

from distllm.engine.interface import BLOCK_SIZE

LayerKV = NewType("LayerKV", tuple[Tensor, ...])
"""Keys and values of one layer, and their scales where they are quantized.

The first dimension of all is the block; the rest is the backend's own.
"""

QUANTIZED_KV = (torch.int8, torch.float8_e4m3fn)
"""Types of a cache that keeps a scale (float32) for the keys and one for the values of each token and head."""


def indexable(stored: Tensor) -> Tensor:
    """The same memory in a type that every device can index: bytes of a float8."""
    return stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where the rows of one step lie, shared by all layers.

    Rows of sequence s are `query_starts[s] .. query_starts[s + 1]`; its first row is at position
    `num_computed[s]`, and row i sees positions 0 .. num_computed[s] + i.
    """

    query_starts: Tensor  # int32 [num_sequences + 1]
    num_computed: Tensor  # int32 [num_sequences]
    block_tables: Tensor  # int32 [num_sequences, max_blocks], padded with 0
    slot_mapping: Tensor  # int64 [num_tokens], block * BLOCK_SIZE + offset of each row's own KV
    block_size: int = BLOCK_SIZE

    def to(self, device: torch.device) -> "AttentionBatch":
        return AttentionBatch(
            self.query_starts.to(device),
            self.num_computed.to(device),
            self.block_tables.to(device),
            self.slot_mapping.to(device),
            self.block_size,
        )


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer asks for beside its tensors. `sliding_window` counts the row itself; None sees everything."""

    scale: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # [num_heads], a logit a head that takes part in the softmax only


class AttentionBackend(Protocol):
    """Row-invariant where `is_row_invariant` says so: a row's bits depend on its own inputs alone."""

    name: str
    is_row_invariant: bool

    def allocate(
        self, num_blocks: int, num_kv_heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
    ) -> LayerKV:
        """Room for one layer's KV of a floating type or one of QUANTIZED_KV, filled with zeros."""

    def write(self, layer_kv: LayerKV, keys: Tensor, values: Tensor, batch: AttentionBatch) -> None:
        """Store keys [num_tokens, num_kv_heads, key_dim] and values [.., value_dim] at the batch's slots."""

    def attend(self, query: Tensor, layer_kv: LayerKV, batch: AttentionBatch, call: AttentionCall) -> Tensor:
        """query [num_tokens, num_heads, key_dim] -> [num_tokens, num_heads, value_dim], same dtype."""
