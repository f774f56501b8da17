"""Inverse transform sampling in exact arithmetic.

A token's weight is its probability as a whole multiple of 2**-52: exact in float32. Sums of weights are taken in
float64, stay below 2**53 and so are exact too: no order of summing, no split over threads and no device changes a
bit of them.
"""

import torch
from torch import Tensor

ONE = float(1 << 52)
"""The weight of probability one."""

_BLOCK_WIDTH = 256
_MAX_VALUES_AT_ONCE = 1 << 17
"""Bounds the float64 copy of a part, so that it stays in a core's cache."""


def to_weights(probabilities: Tensor) -> Tensor:
    """Turn float32 probabilities into weights, in place; those under 2**-52 become 0. Returns its argument."""
    return probabilities.mul_(ONE).floor_()


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Where each row's cumulative weight first exceeds uniform * total: float64 [rows, n], [rows] -> int64 [rows].

    The total of a row is positive; a uniform lies in [0, 1).
    """
    cumulative = weights.cumsum(-1)
    return _first_above(cumulative, _goal(cumulative[:, -1:], uniforms)).squeeze(-1)


def draw_from_many(weights: Tensor, uniforms: Tensor) -> Tensor:
    """`draw` for long rows of float32 weights: finds the block of columns by its sum, then the column in it."""
    surplus = -weights.shape[-1] % _BLOCK_WIDTH
    if surplus:
        weights = torch.nn.functional.pad(weights, (0, surplus))
    blocks = weights.view(len(weights), -1, _BLOCK_WIDTH)
    sums = sums_of(blocks)
    cumulative = sums.cumsum(-1)
    goal = _goal(cumulative[:, -1:], uniforms)
    block = _first_above(cumulative, goal)
    before = cumulative.gather(-1, block) - sums.gather(-1, block)
    inner = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK_WIDTH)).squeeze(1)
    return (block * _BLOCK_WIDTH + _first_above(inner.double().cumsum(-1), goal - before)).squeeze(-1)


def sums_of(weights: Tensor) -> Tensor:
    """Exact sums over the last dimension of float32 weights, in float64."""
    num_at_once = max(1, _MAX_VALUES_AT_ONCE * len(weights) // weights.numel())
    copy = torch.empty_like(weights[:num_at_once], dtype=torch.float64)
    sums = torch.empty_like(weights[..., 0], dtype=torch.float64)
    for start in range(0, len(weights), num_at_once):
        rows = weights[start : start + num_at_once]
        torch.sum(copy[: len(rows)].copy_(rows), -1, out=sums[start : start + num_at_once])
    return sums


def _goal(total: Tensor, uniforms: Tensor) -> Tensor:
    """The weight to exceed, a whole number in [0, total - 1]: float64 [rows, 1]."""
    return torch.minimum((total * uniforms.unsqueeze(-1)).floor_(), total - 1)


def _first_above(cumulative: Tensor, goal: Tensor) -> Tensor:
    return torch.searchsorted(cumulative, goal, right=True)
