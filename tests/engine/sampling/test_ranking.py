"""Ranks: falling value, ties by smaller id, whatever the vocabulary's size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.engine.sampling.ranking import best_ids, block_maxima, ranked_ids


def sorted_ids(row: torch.Tensor) -> list[int]:
    return sorted(range(len(row)), key=lambda token_id: (-row[token_id].item(), token_id))


@settings(deadline=None)
@given(
    vocab_size=st.integers(1, 150),
    num=st.integers(1, 160),
    num_levels=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_ranked_ids_equal_a_stable_sort(vocab_size: int, num: int, num_levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-num_levels, num_levels, (3, vocab_size), generator=generator) / 7.0
    values[values == 0.0] *= -1.0  # negative zeros tie with positive ones
    values[1, 0] = -torch.inf
    ids = ranked_ids(values, block_maxima(values), num)
    assert ids.tolist() == [sorted_ids(row)[:num] for row in values]


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 50257, 128256])
def test_the_best_of_equal_tokens_is_the_smallest_id(vocab_size: int) -> None:
    values = torch.zeros(4, vocab_size)
    for row, token_id in enumerate((0, vocab_size // 3, vocab_size // 2, vocab_size - 1)):
        values[row, token_id:] = 1.0
    assert best_ids(values, block_maxima(values)).tolist() == [0, vocab_size // 3, vocab_size // 2, vocab_size - 1]


def test_rows_of_a_strided_matrix_are_ranked_as_they_are() -> None:
    values = torch.randn(4, 200, generator=torch.Generator().manual_seed(1))[:, 3:103]
    assert ranked_ids(values, block_maxima(values), 5).tolist() == [sorted_ids(row)[:5] for row in values]
