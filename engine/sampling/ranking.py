"""The one order in which tokens are ranked: falling value, equal values by smaller id.

A vocabulary is never sorted. Its ids are cut into blocks; the n best tokens lie in the n blocks of best maximum, so
only those are looked into. Every function works row by row: no row's result depends on another row.
"""

import torch
from torch import Tensor

BLOCK_WIDTH = 32
"""Token ids a block holds (the last block of a vocabulary may hold fewer)."""

_LOW_32 = 0xFFFFFFFF


def block_maxima(values: Tensor) -> Tensor:
    """Largest value of each block: float32 [rows, vocab] -> [rows, ceil(vocab / BLOCK_WIDTH)]; NaN spreads."""
    num_whole = values.shape[-1] // BLOCK_WIDTH
    whole, tail = values[:, : num_whole * BLOCK_WIDTH], values[:, num_whole * BLOCK_WIDTH :]
    maxima = whole.view(len(values), num_whole, BLOCK_WIDTH).amax(-1)
    return torch.cat((maxima, tail.amax(-1, keepdim=True)), dim=-1) if tail.shape[-1] else maxima


def best_ids(values: Tensor, maxima: Tensor) -> Tensor:
    """The best token id of each row, int64 [rows]. `maxima` are `block_maxima(values)`; NaN counts as the best."""
    block = maxima.argmax(-1, keepdim=True)
    ids = _ids_of_blocks(block).clamp_(max=values.shape[-1] - 1)
    return ids.gather(-1, values.gather(-1, ids).argmax(-1, keepdim=True)).squeeze(-1)


def ranked_ids(values: Tensor, maxima: Tensor, num: int) -> Tensor:
    """The `num` best token ids of each row in rank order, int64 [rows, min(num, vocab)].

    `maxima` are `block_maxima(values)`. The ids of a row that holds NaN are distinct but in no given order.
    """
    vocab_size, num_blocks = values.shape[-1], maxima.shape[-1]
    keys = rank_keys(maxima, torch.arange(num_blocks, device=maxima.device))
    ids = _ids_of_blocks(ids_of_keys(keys.topk(min(num, num_blocks), sorted=False).values))
    keys = rank_keys(values.gather(-1, ids.clamp(max=vocab_size - 1)), ids)
    if vocab_size % BLOCK_WIDTH:
        keys = keys.masked_fill(ids >= vocab_size, torch.iinfo(torch.int64).min)
    return ids_of_keys(keys.topk(min(num, vocab_size)).values)


def rank_keys(values: Tensor, ids: Tensor) -> Tensor:
    """Distinct int64 keys that rise with rank: the float32 value's order above, the id's complement below."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: a negative zero equals a positive one
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LOW_32 - ids)


def ids_of_keys(keys: Tensor) -> Tensor:
    """The ids that `rank_keys` put into its keys."""
    return _LOW_32 - (keys & _LOW_32)


def _ids_of_blocks(blocks: Tensor) -> Tensor:
    """[rows, n] -> [rows, n * BLOCK_WIDTH]; those of the last block may lie past the vocabulary."""
    return (blocks.unsqueeze(-1) * BLOCK_WIDTH + torch.arange(BLOCK_WIDTH, device=blocks.device)).flatten(-2)
