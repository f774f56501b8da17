"""Draws from lists of candidates, which hold all that may be drawn.

A list is always made equally wide, so that no sum over it depends on how long those of other rows are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distllm.engine.sampling.candidates import MAX_CANDIDATES, Candidates, list_size
from distllm.engine.sampling.drawing import draw, to_weights
from distllm.engine.sampling.filtering import Filters, filter_ranked
from distllm.engine.sampling.temperature import temperatures_of
from distllm.engine.sampling_params import SamplingParams


class ListedPlan:
    """Holds for every step whose listed rows have exactly these `params`."""

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        self.params = list(params)
        self.device = device
        self.counts = torch.tensor([list_size(p) for p in params], dtype=torch.int64)  # in host memory
        self.temperatures = temperatures_of(params, device)
        self.filters = Filters.of(params, MAX_CANDIDATES + 1, device)  # a list is never the whole vocabulary

    def fits(self, params: Sequence[SamplingParams], device: torch.device) -> bool:
        return params == self.params and device == self.device


def draw_listed(best: Candidates, randoms: Tensor, plan: ListedPlan, members: slice = slice(None)) -> Tensor:
    """Token ids, int64 [rows]; the best value of every row is finite.

    `members` are the rows' places in `plan`; randoms: float64 [rows], in [0, 1).
    """
    missing = MAX_CANDIDATES - best.ids.shape[-1]
    values = torch.nn.functional.pad(best.values, (0, missing), value=-torch.inf)
    ids = torch.nn.functional.pad(best.ids, (0, missing))
    scaled = (values - values[:, :1]) / plan.temperatures[members]
    weights = to_weights(torch.softmax(scaled, dim=-1)).double()
    filter_ranked(weights, scaled, plan.filters.rows(members))
    ids, order = ids.sort(-1)
    choice = draw(weights.gather(-1, order), randoms)
    return ids.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
