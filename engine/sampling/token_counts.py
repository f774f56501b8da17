"""How often each token is in a growing history, kept from step to step so that a step looks at new tokens alone."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from distllm.engine.interface import SampleSpec

_LEAST_CAPACITY = 64

Scalar = TypeVar("Scalar", bound=np.generic)


class TokenCounts:
    """Each token id of a history once, with how often it is in the output. Ids outside the vocabulary are left out.

    The history may grow between two updates and must not change otherwise.
    """

    def __init__(self, history: Sequence[int], num_prompt_tokens: int, vocab_size: int) -> None:
        self.history = history
        self.num_prompt_tokens = num_prompt_tokens
        self._vocab_size = vocab_size
        self._num_read = len(history)
        known = np.asarray(history, dtype=np.int64)
        is_output = np.arange(len(known)) >= num_prompt_tokens
        is_known = (known >= 0) & (known < vocab_size)
        ids, places = np.unique(known[is_known], return_inverse=True)
        self._size = len(ids)
        self._ids: NDArray[np.int64] = _with_room(ids)
        counts = np.bincount(places[is_output[is_known]], minlength=len(ids))
        self._counts: NDArray[np.float32] = _with_room(counts.astype(np.float32))
        self._places = {token_id: place for place, token_id in enumerate(ids.tolist())}

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """Occurrences in the output, beside `ids`; 0 for tokens of the prompt alone."""
        return self._counts[: self._size]

    def update(self) -> None:
        """Count what the history has gained."""
        for index in range(self._num_read, len(self.history)):
            token_id = self.history[index]
            if 0 <= token_id < self._vocab_size:
                place = self._place(token_id)  # first: it may replace the array
                self._counts[place] += index >= self.num_prompt_tokens
        self._num_read = len(self.history)

    def _place(self, token_id: int) -> int:
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = self._size
            if self._size == len(self._ids):
                self._ids, self._counts = _with_room(self._ids), _with_room(self._counts)
            self._ids[place] = token_id
            self._size += 1
        return place


class CountsCache:
    """The counts of the sequences of the last step, found by their history, which is one growing list."""

    def __init__(self) -> None:
        self._entries: dict[int, TokenCounts] = {}

    def of(self, specs: Sequence[SampleSpec], vocab_size: int) -> list[TokenCounts]:
        """Up-to-date counts of each spec's history; forgets all others."""
        counts = [
            self._find(spec) or TokenCounts(spec.history, spec.num_prompt_tokens, vocab_size) for spec in specs
        ]
        self._entries = {id(known.history): known for known in counts}
        for known in counts:
            known.update()
        return counts

    def _find(self, spec: SampleSpec) -> TokenCounts | None:
        known = self._entries.get(id(spec.history))
        if known is None or known.history is not spec.history or known.num_prompt_tokens != spec.num_prompt_tokens:
            return None
        return known


def _with_room(values: NDArray[Scalar]) -> NDArray[Scalar]:
    """A copy with place for as many values again; new places hold 0."""
    return np.concatenate([values, np.zeros(max(_LEAST_CAPACITY, len(values)), dtype=values.dtype)])
