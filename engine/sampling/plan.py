"""How the rows of one batch composition are sampled: who takes which way, with every parameter tensor built."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distllm.engine.sampling import filtered_draw
from distllm.engine.sampling.adjustments import Adjustments
from distllm.engine.sampling.filtering import Filters
from distllm.engine.sampling_params import SamplingParams

_LEAST_TEMPERATURE = 1e-30
"""Lower ones, which float32 might take for 0, act like this one."""


class RowGroup:
    """Rows of a batch that take the same way."""

    def __init__(self, members: list[int], num_rows: int, device: torch.device) -> None:
        self.members = members
        self._index = None if len(members) == num_rows else torch.tensor(members, device=device)

    def __len__(self) -> int:
        return len(self.members)

    def take(self, values: Tensor, members: slice = slice(None)) -> Tensor:
        """These rows of `values`, or some of them: a view where the group is the whole batch, else a copy."""
        return values[members] if self._index is None else values.index_select(0, self._index[members])

    def put(self, values: Tensor, target: Tensor) -> None:
        """Write `values`, one for each member, to these rows of `target`."""
        target[slice(None) if self._index is None else self._index] = values


class SamplingPlan:
    """Holds for every step whose rows have exactly these `params`, whatever their logits, seeds and indices."""

    def __init__(self, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> None:
        self.params = list(params)
        self.vocab_size = vocab_size
        self.device = device
        self.adjustments = Adjustments(params, vocab_size, device)
        self.greedy = self._group(lambda p: p.is_greedy)
        self.plain = self._group(lambda p: not p.is_greedy and not self._is_filtered(p))
        self.filtered = self._group(lambda p: not p.is_greedy and self._is_filtered(p))
        self.scored = self._group(lambda p: p.logprobs is not None)
        self.temperatures = self._column([max(p.temperature, _LEAST_TEMPERATURE) for p in params], torch.float32)
        filtered = [params[row] for row in self.filtered.members]
        self.filters = self._filters(filtered)
        self.shortlist = max((self._shortlist(p) for p in filtered), default=0)

    def fits(self, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> bool:
        return params == self.params and vocab_size == self.vocab_size and device == self.device

    def _group(self, belongs: Callable[[SamplingParams], bool]) -> RowGroup:
        members = [row for row, p in enumerate(self.params) if belongs(p)]
        return RowGroup(members, len(self.params), self.device)

    def _is_filtered(self, params: SamplingParams) -> bool:
        return self._top_k(params) < self.vocab_size or params.top_p < 1.0 or params.min_p > 0.0

    def _top_k(self, params: SamplingParams) -> int:
        return self.vocab_size if params.top_k is None else min(params.top_k, self.vocab_size)

    def _shortlist(self, params: SamplingParams) -> int:
        top_k = self._top_k(params)
        return top_k if top_k <= filtered_draw.LONGEST_SHORTLIST else filtered_draw.SHORTLIST

    def _filters(self, params: Sequence[SamplingParams]) -> Filters:
        log_min_p = [math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in params]
        has_subset = [self._top_k(p) < self.vocab_size or p.min_p > 0.0 for p in params]
        return Filters(
            top_k=self._column([self._top_k(p) for p in params], torch.int64),
            top_p=self._column([p.top_p for p in params], torch.float64),
            log_min_p=self._column(log_min_p, torch.float32),
            has_subset=self._column(has_subset, torch.bool),
        )

    def _column(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device).unsqueeze(-1)
