"""top_k, top_p and min_p: which tokens stay, and the weight of each.

Tokens are ranked as in `ranking`. min_p removes those less likely than min_p times the best; then top_k keeps the
first k; then top_p keeps the shortest run from the best whose weight reaches top_p of what is left. So exactly one
set of tokens is right, and the two ways of finding it agree to the bit: look at the best tokens only, where that is
sure to suffice, or section the whole vocabulary (`sectioning`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.engine.sampling.drawing import ONE
from distllm.engine.sampling.sectioning import keep_leading, keep_reaching
from distllm.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Filters:
    """Bounds of each row, as columns [rows, 1]."""

    top_k: Tensor  # int64, the vocabulary's size where it is off
    top_p: Tensor  # float64, 1 where it is off
    log_min_p: Tensor  # float32, -inf where it is off
    has_subset: Tensor  # bool, whether top_k or min_p is on: top_p is then of what they leave

    @classmethod
    def of(cls, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> "Filters":
        """Those of each row's parameters."""

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(-1)

        top_k = [vocab_size if p.top_k is None else min(p.top_k, vocab_size) for p in params]
        has_subset = [k < vocab_size or p.min_p > 0.0 for k, p in zip(top_k, params, strict=True)]
        log_min_p = [math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in params]
        return cls(
            top_k=column(top_k, torch.int64),
            top_p=column([p.top_p for p in params], torch.float64),
            log_min_p=column(log_min_p, torch.float32),
            has_subset=column(has_subset, torch.bool),
        )

    def rows(self, index: slice | Tensor) -> "Filters":
        """The filters of some rows."""
        return Filters(self.top_k[index], self.top_p[index], self.log_min_p[index], self.has_subset[index])


def filter_ranked(weights: Tensor, scaled: Tensor, filters: Filters) -> Tensor:
    """Set to 0 the weights of those that go among the first n tokens in rank order, float64 [rows, n].

    `scaled` holds their logits over temperature, less the row's largest. -> bool [rows], whether no later token
    stays; where one may, the row's weights mean nothing.
    """
    num = weights.shape[-1]
    is_kept = scaled >= filters.log_min_p
    is_subset_complete = ~is_kept[:, -1:] | (filters.top_k <= num)
    is_kept &= torch.arange(num, device=weights.device) < filters.top_k
    weights *= is_kept
    cumulative = weights.cumsum(-1)
    goal = _goal(cumulative[:, -1:], filters)
    reaches_goal = ~filters.has_subset & (cumulative[:, -1:] >= goal)
    weights *= cumulative - weights < goal
    return (is_subset_complete | reaches_goal).squeeze(-1)


def filter_all(weights: Tensor, scaled: Tensor, filters: Filters) -> None:
    """Set to 0 the weights of those that go among all tokens in id order, float32 [rows, vocab]."""
    if bool(filters.log_min_p.isfinite().any()):
        keep_reaching(weights, scaled, filters.log_min_p)
    if bool((filters.top_k < weights.shape[-1]).any()):
        keep_leading(weights, scaled, torch.ones_like(weights, dtype=torch.float64), filters.top_k.double())
    if bool((filters.top_p < 1.0).any()):
        amounts = weights.double()
        keep_leading(weights, scaled, amounts, _goal(amounts.sum(-1, keepdim=True), filters))


def _goal(subset: Tensor, filters: Filters) -> Tensor:
    """The weight that top_p asks for, float64 [rows, 1]. `subset` is the weight that top_k and min_p leave."""
    total = torch.where(filters.has_subset, subset, ONE)
    return (total * filters.top_p).ceil().clamp(min=1.0)
