"""How memory is divided: the KV pool, the ring, and as many layers as the rest holds."""

from dataclasses import replace

import pytest

from distllm.engine.config import EngineConfig
from distllm.engine.offload.residency import Residency, choose_residents, divide_memory
from distllm.engine.pool_size import OutOfMemory, PoolNeed

NEED = PoolNeed(block_bytes=100, max_model_len=160, max_num_seqs=4, activation_bytes=500)


def test_all_layers_stay_where_they_fit() -> None:
    assert choose_residents([10, 20, 30], 60) == Residency((), 0, 0, 0, 60)


def test_what_is_left_beside_three_buffers_holds_layers_that_lie_evenly() -> None:
    residency = choose_residents([10] * 8, 50)
    assert residency.streamed == (0, 1, 3, 4, 5, 7)
    assert (residency.num_slots, residency.ring_bytes, residency.resident_bytes) == (3, 30, 20)
    assert residency.streamed_bytes == 60


def test_two_buffers_do_where_three_do_not_fit() -> None:
    residency = choose_residents([10] * 8, 29)
    assert (residency.num_slots, len(residency.streamed)) == (2, 8)


def test_buffers_are_as_large_as_the_largest_layer_that_streams() -> None:
    residency = choose_residents([5, 5, 40, 5, 5], 55)
    assert residency.streamed == (0, 1, 3, 4)
    assert residency.slot_bytes == 5


@pytest.mark.parametrize("num_layers", range(3, 12))
def test_no_budget_is_exceeded_and_every_layer_is_somewhere(num_layers: int) -> None:
    layer_bytes = [7 + number % 3 for number in range(num_layers)]
    for budget in range(2 * max(layer_bytes), sum(layer_bytes)):
        residency = choose_residents(layer_bytes, budget)
        assert residency.ring_bytes + residency.resident_bytes <= budget
        assert residency.streamed_bytes + residency.resident_bytes == sum(layer_bytes)
        assert len(residency.streamed) > residency.num_slots or residency.num_slots == 2


def test_too_little_for_two_buffers_is_refused_with_the_flags() -> None:
    with pytest.raises(OutOfMemory, match=r"20 bytes of buffers, and 19 bytes are left: lower --max-num-batched"):
        choose_residents([10] * 8, 19)


def kv_bytes(free_bytes: int, **given: int) -> int:
    config = EngineConfig(model="m", **given)  # type: ignore[arg-type]
    return divide_memory(config, NEED, [10] * 8, 100, free_bytes).kv_bytes


def test_the_pool_gets_a_quarter_within_one_sequence_and_a_full_batch() -> None:
    assert kv_bytes(10_000) == (9000 - 500) // 4
    assert kv_bytes(3000) == 10 * 100
    assert kv_bytes(100_000) == 4 * 10 * 100


def test_the_ring_goes_before_a_larger_pool() -> None:
    need = replace(NEED, max_model_len=16, max_num_seqs=40)
    division = divide_memory(EngineConfig(model="m"), need, [900] * 8, 0, 2778)
    assert (division.kv_bytes, division.residency.ring_bytes) == (2500 - 500 - 1800, 1800)


def test_beside_weights_of_a_given_size_the_pool_gets_the_rest() -> None:
    assert kv_bytes(4000, weights_bytes=150) == 3600 - 500 - 50


def test_a_given_pool_is_left_as_it_is() -> None:
    assert kv_bytes(10_000, kv_cache_bytes=1234) == 1234
    assert kv_bytes(10_000, num_blocks=7) == 700


def test_layers_get_what_pool_and_activations_leave() -> None:
    need = replace(NEED, max_model_len=16)
    residency = divide_memory(EngineConfig(model="m"), need, [100] * 10, 0, 1500).residency
    assert residency.resident_bytes + residency.ring_bytes == (1350 - 500) // 4 * 3 // 100 * 100
    with pytest.raises(OutOfMemory, match="lower --max-num-batched-tokens"):
        divide_memory(EngineConfig(model="m"), need, [100] * 10, 0, 600)
    with pytest.raises(OutOfMemory, match="raise --weights-memory"):
        divide_memory(EngineConfig(model="m", weights_bytes=300), need, [100] * 10, 200, 10_000)
