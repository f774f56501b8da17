"""How memory is divided: the KV pool, the ring, and as many layers as the rest holds."""

import pytest

from distllm.engine.offload.residency import Residency, choose_residents, share_memory
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


def test_the_pool_gets_a_quarter_within_one_sequence_and_a_full_batch() -> None:
    assert share_memory(NEED, 10_000, None).kv_bytes == (9000 - 500) // 4
    assert share_memory(NEED, 3000, None).kv_bytes == 10 * 100
    assert share_memory(NEED, 100_000, None).kv_bytes == 4 * 10 * 100


def test_layers_get_what_pool_and_activations_leave() -> None:
    assert share_memory(NEED, 10_000, 1234).layer_bytes == 9000 - 500 - 1234
    assert share_memory(NEED, 400, 1234).layer_bytes == 0
