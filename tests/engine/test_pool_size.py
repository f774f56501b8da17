"""The pool takes what memory allows, no more than can be used, and refuses what cannot serve."""

import pytest

from distllm.engine.config import EngineConfig
from distllm.engine.pool_size import OutOfMemory, PoolNeed, size_pool

MIB = 1 << 20
NEED = PoolNeed(block_bytes=MIB, max_model_len=160, max_num_seqs=4)  # 10 blocks a sequence


def config(**changes: int) -> EngineConfig:
    return EngineConfig(model="m", **changes)  # type: ignore[arg-type]


def test_four_fifths_of_the_free_memory_are_taken() -> None:
    assert size_pool(config(), NEED, free_bytes=25 * MIB) == 20


def test_activations_stay_free() -> None:
    need = PoolNeed(block_bytes=MIB, max_model_len=160, max_num_seqs=4, activation_bytes=5 * MIB)
    assert size_pool(config(), need, free_bytes=25 * MIB) == 15


def test_no_more_blocks_than_a_full_batch_can_use() -> None:
    assert size_pool(config(), NEED, free_bytes=10_000 * MIB) == 40


def test_a_given_size_replaces_the_measured_one() -> None:
    assert size_pool(config(kv_cache_bytes=12 * MIB + 1), NEED, free_bytes=12 * MIB) == 12
    assert size_pool(config(num_blocks=1000), NEED, free_bytes=0) == 1000


def test_a_given_size_that_is_not_free_is_refused() -> None:
    with pytest.raises(OutOfMemory) as caught:
        size_pool(config(kv_cache_bytes=30 * MIB), NEED, free_bytes=20 * MIB)
    assert str(caught.value) == (
        "--kv-cache-memory gives 30.0 MiB for the KV cache, but only 20.0 MiB are free beside the weights: lower it"
    )
    assert size_pool(config(kv_cache_bytes=1000 * MIB), NEED, free_bytes=40 * MIB) == 40


@pytest.mark.parametrize(
    ("given", "free_bytes", "words"),
    [
        ({}, 10 * MIB, "10.0 MiB are free, enough for 128 tokens: lower --max-model-len to 128"),
        ({"kv_cache_bytes": 9 * MIB}, 0, "--kv-cache-memory gives 9.00 MiB, enough for 144 tokens"),
        ({"num_blocks": 9}, 0, "9 blocks were given"),
        ({}, 0, "lower --max-model-len or raise --kv-cache-memory"),
    ],
)
def test_a_pool_without_room_for_one_sequence_is_refused(
    given: dict[str, int], free_bytes: int, words: str
) -> None:
    with pytest.raises(OutOfMemory) as caught:
        size_pool(config(**given), NEED, free_bytes)
    assert words in str(caught.value)
    assert "the KV cache of one sequence of 160 tokens takes 10.0 MiB" in str(caught.value)
    assert "\n" not in str(caught.value)
