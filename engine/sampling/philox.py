"""The random number of a token: a function of (seed, index) and nothing else.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers, As Easy as 1, 2, 3; SC 2011), in integers, so
that every machine gets the same bits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 10
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))

Words = NDArray[np.uint64]
"""32-bit words, each in a 64-bit element so that products fit."""


def uniforms(seeds: Sequence[int], indices: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1), a multiple of 2**-53, for each (seed, index) pair; both lie in [0, 2**64)."""
    seed = np.array(seeds, dtype=np.uint64)
    index = np.array(indices, dtype=np.uint64)
    zero = np.zeros_like(index)
    high, low, _, _ = philox((index & _LOW_32, index >> _SHIFT_32, zero, zero), _split(seed))
    mantissa = ((high << _SHIFT_32) | low) >> np.uint64(11)
    return mantissa.astype(np.float64) * 2.0**-53


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """The four 32-bit words that belong to each counter under each key, elementwise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT_32) ^ c1 ^ k0,
            product1 & _LOW_32,
            (product0 >> _SHIFT_32) ^ c3 ^ k1,
            product0 & _LOW_32,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_32, (k1 + _KEY_STEPS[1]) & _LOW_32
    return c0, c1, c2, c3


def _split(words: Words) -> tuple[Words, Words]:
    return words & _LOW_32, words >> _SHIFT_32
