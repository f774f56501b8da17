"""What changes logits before a token is chosen, greedily or not: min_tokens, logit_bias, penalties, in that order.

Only rows that ask for it are touched, in place. Token ids outside the vocabulary are passed over.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling.token_counts import CountsCache, TokenCounts
from distllm.engine.sampling_params import SamplingParams

_LEAST_FACTOR, _LARGEST_FACTOR = 1e-30, 1e30
"""Repetition penalties beyond these act like these: a product with any logit stays finite in float32."""


def is_adjusted(spec: SampleSpec) -> bool:
    """Whether a row's logits may be changed before its next token is chosen."""
    params = spec.params
    return bool(params.logit_bias) or params.needs_history or spec.index < params.min_tokens


class Adjustments:
    """The rows of one batch composition that have adjustments, with the tensors that need be built only once."""

    def __init__(self, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._min_tokens_rows = [row for row, p in enumerate(params) if p.min_tokens > 0]
        self._penalty_rows = [row for row, p in enumerate(params) if p.needs_history]
        penalised = [params[row] for row in self._penalty_rows]
        self._factors = [min(max(p.repetition_penalty, _LEAST_FACTOR), _LARGEST_FACTOR) for p in penalised]
        self._frequencies = [p.frequency_penalty for p in penalised]
        self._presences = [p.presence_penalty for p in penalised]
        biases = [
            (row, token_id, bias)
            for row, p in enumerate(params)
            for token_id, bias in p.logit_bias.items()
            if token_id < vocab_size
        ]
        self._bias_rows, self._bias_ids = self._positions((row, token_id) for row, token_id, _ in biases)
        self._biases = torch.tensor([bias for _, _, bias in biases], device=device)

    def apply(self, logits: Tensor, specs: Sequence[SampleSpec], cache: CountsCache) -> None:
        """Change float32 [rows, vocab] in place; `specs` have the params that this was built with."""
        self._ban_ends(logits, specs)
        if len(self._biases):
            logits[self._bias_rows, self._bias_ids] += self._biases
        if self._penalty_rows:
            self._penalise(logits, cache.of([specs[row] for row in self._penalty_rows], self._vocab_size))

    def _ban_ends(self, logits: Tensor, specs: Sequence[SampleSpec]) -> None:
        banned = [
            (row, token_id)
            for row in self._min_tokens_rows
            if specs[row].index < specs[row].params.min_tokens
            for token_id in specs[row].params.eos_token_ids + specs[row].params.stop_token_ids
            if 0 <= token_id < self._vocab_size
        ]
        if banned:
            rows, ids = self._positions(banned)
            logits[rows, ids] = -torch.inf

    def _penalise(self, logits: Tensor, histories: Sequence[TokenCounts]) -> None:
        """Repetition over every known token, then frequency and presence over the output alone."""
        sizes = [len(history.ids) for history in histories]
        places = np.concatenate([history.ids for history in histories])  # in logits laid out as one row
        places += np.repeat(np.asarray(self._penalty_rows, dtype=np.int64) * self._vocab_size, sizes)
        index = torch.from_numpy(places).to(self._device)
        counts = torch.from_numpy(np.concatenate([history.counts for history in histories])).to(self._device)
        factors = self._spread(self._factors, sizes)
        seen = logits.take(index)
        seen = torch.where(seen > 0, seen / factors, seen * factors)
        said = counts * self._spread(self._frequencies, sizes) + self._spread(self._presences, sizes)
        logits.put_(index, torch.where(counts > 0, seen - said, seen))

    def _spread(self, values: Sequence[float], sizes: Sequence[int]) -> Tensor:
        """Each value, float32, as often as its history has tokens."""
        return torch.from_numpy(np.repeat(np.asarray(values, dtype=np.float32), sizes)).to(self._device)

    def _positions(self, pairs: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        columns = torch.tensor(list(pairs), dtype=torch.int64, device=self._device).reshape(-1, 2)
        return columns[:, 0], columns[:, 1]
