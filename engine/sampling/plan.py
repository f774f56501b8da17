"""How the rows of one batch composition are sampled: who takes which way, with every parameter tensor built."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distllm.engine.sampling.adjustments import Adjustments
from distllm.engine.sampling.candidates import list_size
from distllm.engine.sampling.filtering import Filters
from distllm.engine.sampling.listed_draw import ListedPlan
from distllm.engine.sampling.temperature import temperatures_of
from distllm.engine.sampling_params import SamplingParams


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
        self.listed = self._group(lambda p: not p.is_greedy and list_size(p) is not None)
        self.plain = self._group(lambda p: list_size(p) is None and not self._is_filtered(p))
        self.filtered = self._group(lambda p: list_size(p) is None and self._is_filtered(p))
        self.scored = self._group(lambda p: p.logprobs is not None)
        self.temperatures = temperatures_of(params, device)
        self.lists = ListedPlan([params[row] for row in self.listed.members], device)
        self.filters = Filters.of([params[row] for row in self.filtered.members], vocab_size, device)

    def fits(self, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> bool:
        return params == self.params and vocab_size == self.vocab_size and device == self.device

    def _group(self, belongs: Callable[[SamplingParams], bool]) -> RowGroup:
        members = [row for row, p in enumerate(self.params) if belongs(p)]
        return RowGroup(members, len(self.params), self.device)

    def _is_filtered(self, params: SamplingParams) -> bool:
        has_top_k = params.top_k is not None and params.top_k < self.vocab_size
        return has_top_k or params.top_p < 1.0 or params.min_p > 0.0
