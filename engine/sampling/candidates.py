"""The few tokens of a row that can be chosen at all, where its parameters tell how many they are.

A row's candidates are its n best tokens in rank order (see `ranking`), n its own. Those of a vocabulary are among
those of its parts, so that ranks which hold parts need hand over no more, and they alone decide the token: whether
they were found in a whole row or in its parts has no influence on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling.adjustments import is_adjusted
from distllm.engine.sampling.ranking import best_ids, block_maxima, rank_keys, ranked_ids
from distllm.engine.sampling_params import SamplingParams

MAX_CANDIDATES = 256
"""Largest top_k for which they are listed: for longer lists it is faster to section the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best tokens of each row in rank order.

    Past a row's own number, and where the vocabulary has fewer, values are -inf and ids of no meaning. A row that
    holds NaN has NaN for all its values.
    """

    values: Tensor  # float32 [rows, width], logits
    ids: Tensor  # int64 [rows, width]

    def __len__(self) -> int:
        return len(self.ids)

    def shifted(self, first_id: int, device: torch.device) -> "Candidates":
        """Those of a part of a vocabulary as tokens of the whole, on `device`."""
        return Candidates(self.values.to(device), self.ids.to(device, torch.int64) + first_id)


def list_size(params: SamplingParams) -> int | None:
    """How many of the best tokens a token is chosen from; None where the whole row decides."""
    if params.is_greedy:
        return 1
    return params.top_k if params.top_k is not None and params.top_k <= MAX_CANDIDATES else None


def num_candidates(spec: SampleSpec) -> int | None:
    """How many of its best tokens are all that is read of a row; None where the whole row is."""
    if spec.params.logprobs is not None or is_adjusted(spec):
        return None
    return list_size(spec.params)


def find_candidates(logits: Tensor, maxima: Tensor, counts: Tensor) -> Candidates:
    """The candidates of each row, as wide as the longest list.

    logits: float32 [rows, vocab]; maxima: `block_maxima(logits)`; counts: int64 [rows], positive, in host memory.
    """
    width = int(counts.max())
    ids = best_ids(logits, maxima).unsqueeze(-1) if width == 1 else ranked_ids(logits, maxima, width)
    values = logits.gather(-1, ids)
    missing = width - ids.shape[-1]
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
        ids = torch.nn.functional.pad(ids, (0, missing))
    return Candidates(_cut(values, maxima.amax(-1, keepdim=True), counts), ids)


def merge_candidates(parts: Sequence[Candidates], counts: Tensor) -> Candidates:
    """The candidates of the whole from those of its parts, which have rising ids. counts: as `find_candidates`."""
    values = torch.cat([part.values for part in parts], dim=-1)
    ids = torch.cat([part.ids for part in parts], dim=-1)
    width = int(counts.max())
    best = rank_keys(values, ids).topk(width).indices
    return Candidates(_cut(values.gather(-1, best), values.amax(-1, keepdim=True), counts), ids.gather(-1, best))


def candidates_in(logits: Tensor, counts: Tensor) -> Candidates:
    """`find_candidates` where nothing else asks for the blocks' maxima."""
    return find_candidates(logits, block_maxima(logits), counts)


def _cut(values: Tensor, peaks: Tensor, counts: Tensor) -> Tensor:
    """`values` without those past each row's own number, and NaN throughout where the row's peak is."""
    is_listed = torch.arange(values.shape[-1]) < counts.unsqueeze(-1)
    kept = values.masked_fill(~is_listed.to(values.device), -torch.inf)
    return torch.where(peaks.isnan(), peaks, kept)
