"""Removes all but the leading tokens of whole vocabularies, exactly and without sorting them.

`scaled` is everywhere float32 [rows, vocab], logits over temperature less the row's largest: none is above 0, and
falling order is rank order, equal values by smaller id. Sums are of whole numbers in float64 and below 2**53.
"""

import torch
from torch import Tensor

from distllm.engine.sampling.ranking import rank_keys

_NUM_BUCKETS = 8192
_BUCKETS_PER_UNIT = 128.0
"""Sections of a histogram to a unit of `scaled`; the last bucket takes all that is further down."""


def keep_reaching(weights: Tensor, scaled: Tensor, least: Tensor) -> None:
    """Set to 0 the weights of tokens whose `scaled` is under the row's `least`, both float32; least: [rows, 1]."""
    finite = least.clamp(min=torch.finfo(least.dtype).min / 2)
    under = torch.nextafter(finite, torch.full_like(finite, -torch.inf))
    weights *= (scaled - under).sign_().relu_()  # 1 or 0: several times as fast as a comparison


def keep_leading(weights: Tensor, scaled: Tensor, amounts: Tensor, goal: Tensor) -> None:
    """Set to 0 the weights outside the shortest run from the best whose amounts sum to `goal`.

    Keeps all where even the whole sum stays below it. weights: float32, amounts: float64, both [rows, vocab];
    goal: float64 [rows, 1], positive.
    """
    buckets = (scaled * -_BUCKETS_PER_UNIT).clamp_(max=_NUM_BUCKETS - 1).long()
    sums = amounts.new_zeros(len(scaled), _NUM_BUCKETS).scatter_add_(-1, buckets, amounts)
    cumulative = sums.cumsum(-1)
    crossing = torch.searchsorted(cumulative, torch.minimum(goal, cumulative[:, -1:]))
    before = cumulative.gather(-1, crossing) - sums.gather(-1, crossing)
    rows, ids = (buckets == crossing).nonzero(as_tuple=True)
    is_leading = _is_leading(scaled[rows, ids], amounts[rows, ids], goal - before, rows, ids)
    weights[rows[~is_leading], ids[~is_leading]] = 0.0
    rows, ids = rows[is_leading], ids[is_leading]
    least = scaled.new_zeros(len(scaled)).scatter_reduce_(0, rows, scaled[rows, ids], "amin")
    keep_reaching(weights, scaled, least.unsqueeze(-1))


def _is_leading(scaled: Tensor, amounts: Tensor, goal: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Which of the listed tokens, [n], lead their row: the amounts ranked above them do not reach its goal yet.

    The list is row by row and holds at least one token of each.
    """
    by_rank = rank_keys(scaled, ids).argsort(descending=True)
    order = by_rank[rows[by_rank].argsort(stable=True)]  # rows again one after the other, each by rank
    ranked = amounts[order].long()  # the running sum goes on over all rows and would leave float64's whole numbers
    before = ranked.cumsum(-1) - ranked
    starts = torch.searchsorted(rows, torch.arange(len(goal), device=rows.device))
    is_leading = torch.empty_like(order, dtype=torch.bool)
    is_leading[order] = before - before[starts][rows] < goal.squeeze(-1)[rows]
    return is_leading
