"""Random numbers: the published vectors, and that seed and index alone decide."""

import numpy as np
import pytest

from distllm.engine.sampling.philox import philox, uniforms

VECTORS = [  # counter, key, output: the known answers that accompany the authors' Random123 library
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array([int(word, 16)], dtype=np.uint64) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_philox_gives_the_published_words(counter: str, key: str, output: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert tuple(int(word[0]) for word in philox((c0, c1, c2, c3), (k0, k1))) == tuple(
        int(word[0]) for word in words(output)
    )


def test_a_number_does_not_depend_on_its_neighbours() -> None:
    seeds, indices = [7, 2**64 - 1, 0, 7], [0, 5, 2**40, 1]
    together = uniforms(seeds, indices)
    alone = [float(uniforms([seed], [index])[0]) for seed, index in zip(seeds, indices, strict=True)]
    assert together.tolist() == alone
    assert len(set(alone)) == 4


def test_numbers_lie_in_the_half_open_unit_interval_and_are_multiples_of_two_to_minus_53() -> None:
    numbers = uniforms([11] * 20_000, range(20_000))
    assert 0.0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1.0
    assert np.all(numbers * 2.0**53 % 1.0 == 0.0)


def test_numbers_are_spread_evenly_over_indices_and_over_seeds() -> None:
    for numbers in (uniforms([3] * 16_000, range(16_000)), uniforms(range(16_000), [3] * 16_000)):
        counts = np.histogram(numbers, bins=16, range=(0.0, 1.0))[0]
        chi_square = float(((counts - 1000.0) ** 2 / 1000.0).sum())
        assert chi_square < 15 + 5 * 30**0.5
