"""Counts kept from step to step are those of the whole history."""

import random
from collections import Counter

import pytest

from distllm.engine.sampling.token_counts import TokenCounts


@pytest.mark.parametrize("num_prompt_tokens", [0, 1, 10, 200])
def test_counts_of_a_growing_history_are_those_of_the_whole(num_prompt_tokens: int) -> None:
    """It outgrows every room that was made for it."""
    random_source = random.Random(num_prompt_tokens)
    history = [random_source.randrange(3000) for _ in range(num_prompt_tokens)]
    counts = TokenCounts(history, num_prompt_tokens, vocab_size=2900)
    for _ in range(1500):
        history.append(random_source.randrange(3000))
        counts.update()
    expected = Counter(token_id for token_id in history[num_prompt_tokens:] if token_id < 2900)
    kept = dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))
    assert {token_id: count for token_id, count in kept.items() if count} == expected
    assert kept.keys() == {token_id for token_id in history if token_id < 2900}
