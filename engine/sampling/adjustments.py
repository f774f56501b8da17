"""What changes logits before a token is chosen, greedily or not: min_tokens, logit_bias, penalties, in that order.

Only rows that ask for it are touched, in place. Token ids outside the vocabulary are passed over.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling_params import SamplingParams

_LEAST_FACTOR, _LARGEST_FACTOR = 1e-30, 1e30
"""Repetition penalties beyond these act like these: a product with any logit stays finite in float32."""


class Adjustments:
    """The rows of one batch composition that have adjustments, with the tensors that need be built only once."""

    def __init__(self, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._min_tokens_rows = [row for row, p in enumerate(params) if p.min_tokens > 0]
        self._penalty_rows = [row for row, p in enumerate(params) if p.needs_history]
        biases = [
            (row, token_id, bias)
            for row, p in enumerate(params)
            for token_id, bias in p.logit_bias.items()
            if token_id < vocab_size
        ]
        self._bias_rows, self._bias_ids = self._positions((row, token_id) for row, token_id, _ in biases)
        self._biases = torch.tensor([bias for _, _, bias in biases], device=device)

    def apply(self, logits: Tensor, specs: Sequence[SampleSpec]) -> None:
        """Change float32 [rows, vocab] in place; `specs` have the params that this was built with."""
        self._ban_ends(logits, specs)
        if len(self._biases):
            logits[self._bias_rows, self._bias_ids] += self._biases
        for row in self._penalty_rows:
            self._penalise(logits[row], specs[row])

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

    def _penalise(self, logits: Tensor, spec: SampleSpec) -> None:
        """Repetition over every known token, then frequency and presence over the output alone; logits: [vocab]."""
        history = np.asarray(spec.history, dtype=np.int64)
        if spec.params.repetition_penalty != 1.0:
            ids, _ = self._counted(history)
            factor = min(max(spec.params.repetition_penalty, _LEAST_FACTOR), _LARGEST_FACTOR)
            seen = logits[ids]
            logits[ids] = torch.where(seen > 0, seen / factor, seen * factor)
        if spec.params.frequency_penalty != 0.0 or spec.params.presence_penalty != 0.0:
            ids, counts = self._counted(history[spec.num_prompt_tokens :])
            logits[ids] -= counts * spec.params.frequency_penalty + spec.params.presence_penalty

    def _counted(self, history: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Each token id of `history` once, int64, and how often it is there, float32."""
        ids, counts = np.unique(history[(history >= 0) & (history < self._vocab_size)], return_counts=True)
        return (
            torch.from_numpy(ids).to(self._device),
            torch.from_numpy(counts.astype(np.float32)).to(self._device),
        )

    def _positions(self, pairs: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        columns = torch.tensor(list(pairs), dtype=torch.int64, device=self._device).reshape(-1, 2)
        return columns[:, 0], columns[:, 1]
