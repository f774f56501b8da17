"""Paged attention in plain torch: gathers each sequence's KV and attends over it in float32.

Serves where no kernel was built and on CUDA; the oracle of the other backends' tests. Not row-invariant: torch may
sum a row in another order when the number of rows changes.
"""

import torch
from torch import Tensor

from distllm.engine.attention.interface import QUANTIZED_KV, AttentionBatch, AttentionCall, LayerKV, indexable
from distllm.engine.interface import BLOCK_SIZE


class ReferenceAttention:
    """Keeps a layer's KV as [num_blocks, BLOCK_SIZE, num_kv_heads, dim] on one device."""

    name = "reference"
    is_row_invariant = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(
        self, num_blocks: int, num_kv_heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
    ) -> LayerKV:
        keys, values = (
            torch.zeros(num_blocks, BLOCK_SIZE, num_kv_heads, dim, dtype=dtype, device=self._device)
            for dim in (key_dim, value_dim)
        )
        if dtype not in QUANTIZED_KV:
            return LayerKV((keys, values))
        scales = (torch.zeros(num_blocks, BLOCK_SIZE, num_kv_heads, device=self._device) for _ in range(2))
        return LayerKV((keys, values, *scales))

    def write(self, layer_kv: LayerKV, keys: Tensor, values: Tensor, batch: AttentionBatch) -> None:
        new: tuple[Tensor, ...] = (keys, values)
        if layer_kv[0].dtype in QUANTIZED_KV:
            (keys, key_scales), (values, value_scales) = (_encode(rows, layer_kv[0].dtype) for rows in new)
            new = (keys, values, key_scales, value_scales)
        for stored, rows in zip(layer_kv, new, strict=True):
            indexable(stored).flatten(0, 1)[batch.slot_mapping] = indexable(rows.to(stored.dtype))

    def attend(self, query: Tensor, layer_kv: LayerKV, batch: AttentionBatch, call: AttentionCall) -> Tensor:
        value_dim = layer_kv[1].shape[-1]
        output = query.new_empty(*query.shape[:2], value_dim)
        starts = batch.query_starts.tolist()
        for index, num_computed in enumerate(batch.num_computed.tolist()):
            rows = slice(starts[index], starts[index + 1])
            num_tokens = num_computed + rows.stop - rows.start
            blocks = batch.block_tables[index, : -(-num_tokens // BLOCK_SIZE)]
            keys, values, *scales = (
                indexable(stored)[blocks].view(stored.dtype).flatten(0, 1)[:num_tokens] for stored in layer_kv
            )
            if scales:
                keys, values = keys.float() * scales[0][..., None], values.float() * scales[1][..., None]
            output[rows] = _attend_sequence(query[rows], keys, values, num_computed, call)
        return output


def _encode(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """rows [num_tokens, heads, dim] as codes of the same shape and scales [num_tokens, heads]."""
    most = 127.0 if dtype == torch.int8 else 448.0
    largest = rows.float().abs().amax(-1)
    inverse = torch.where(largest > 1e-30, rows.new_tensor(most, dtype=torch.float32) / largest, 0.0)
    scaled = rows.float() * inverse.unsqueeze(-1)
    if dtype == torch.int8:
        return scaled.round().to(dtype), largest / most
    coarse = (scaled * 64).round() / 64  # the kernels store no subnormal numbers
    return torch.where(scaled.abs() < 2**-6, coarse, scaled).to(dtype), largest / most


def _attend_sequence(query: Tensor, keys: Tensor, values: Tensor, num_computed: int, call: AttentionCall) -> Tensor:
    """query [rows, heads, dim] at positions num_computed.., keys and values [tokens, kv_heads, dim]."""
    num_rows, num_heads, _ = query.shape
    num_tokens, num_kv_heads, value_dim = values.shape
    groups = num_heads // num_kv_heads
    grouped = query.float().view(num_rows, num_kv_heads, groups, -1)
    scores = torch.einsum("rkgd,tkd->kgrt", grouped, keys.float()).mul_(call.scale)
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores.masked_fill_(_hidden(num_rows, num_tokens, num_computed, call.sliding_window, query.device), -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.float().view(num_kv_heads, groups, 1, 1).expand(-1, -1, num_rows, 1)
        weights = torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    attended = torch.einsum("kgrt,tkd->rkgd", weights, values.float())
    return attended.reshape(num_rows, num_heads, value_dim).to(query.dtype)


def _hidden(num_rows: int, num_tokens: int, num_computed: int, window: int | None, device: torch.device) -> Tensor:
    """True where a row must not look: [num_rows, num_tokens]."""
    rows = torch.arange(num_computed, num_computed + num_rows, device=device).unsqueeze(1)
    columns = torch.arange(num_tokens, device=device)
    hidden = columns > rows
    return hidden if window is None else hidden | (columns <= rows - window)
