"""What requests ask: random prompts of chosen lengths, with or without a shared beginning, as ids or as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Lengths in tokens. Each prompt is one of `num_prefixes` prefixes of `prefix_len`, then its own tokens.

    With `range_ratio` r, input and output lengths are uniform over [len * (1 - r), len * (1 + r)], at least 1.
    Raises ValueError for what cannot be made.
    """

    num_prompts: int
    input_len: int = 128
    output_len: int = 64
    range_ratio: float = 0.0
    prefix_len: int = 0
    num_prefixes: int = 1

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or self.input_len < 1 or self.output_len < 1 or self.num_prefixes < 1:
            raise ValueError("numbers of prompts and prefixes and both lengths must be at least 1")
        if self.prefix_len < 0 or not 0.0 <= self.range_ratio < 1.0:
            raise ValueError("the prefix length must be at least 0 and the range ratio in [0, 1)")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's input, as ids and (where the server needs it) as text, and how many tokens to generate."""

    token_ids: Sequence[int]
    output_len: int
    text: str | None = None


def make_prompts(workload: Workload, token_ids: Sequence[int], rng: np.random.Generator) -> list[Prompt]:
    """Prompts whose tokens are drawn uniformly from `token_ids`."""
    vocabulary = np.asarray(token_ids)

    def draw(num_tokens: int) -> list[int]:
        return [int(token) for token in rng.choice(vocabulary, size=num_tokens)]

    prefixes = [draw(workload.prefix_len) for _ in range(workload.num_prefixes)]
    inputs = _lengths(workload.input_len, workload, rng)
    outputs = _lengths(workload.output_len, workload, rng)
    return [
        Prompt(prefixes[number % workload.num_prefixes] + draw(input_len), output_len)
        for number, (input_len, output_len) in enumerate(zip(inputs, outputs, strict=True))
    ]


def as_text(prompts: Sequence[Prompt], decode: Callable[[Sequence[int]], str]) -> list[Prompt]:
    """The same prompts with their text. A server may read it as a few tokens more or less: believe its usage."""
    return [Prompt(prompt.token_ids, prompt.output_len, decode(prompt.token_ids)) for prompt in prompts]


def _lengths(mean: int, workload: Workload, rng: np.random.Generator) -> list[int]:
    low = max(1, round(mean * (1 - workload.range_ratio)))
    high = max(low, round(mean * (1 + workload.range_ratio)))
    return [int(length) for length in rng.integers(low, high, size=workload.num_prompts, endpoint=True)]
