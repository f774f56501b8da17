"""What stages need, and how far a peer's memory goes."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.placement.measurements import Cluster, ModelSizes, PeerId
from distllm.engine.pipeline.placement.stage_memory import StageMemory
from tests.engine.pipeline.placement.clusters import model, peer, small_clusters


def test_a_stage_has_its_layers_and_what_is_at_the_ends() -> None:
    here = peer("a")
    memory = StageMemory.of(Cluster(model(4, embedding_bytes=30, head_bytes=7), (here,), ()), min_blocks=2)
    assert memory.weight_bytes(here, 0, 1) == 130
    assert memory.weight_bytes(here, 1, 3) == 200
    assert memory.weight_bytes(here, 3, 4) == 107
    assert memory.needed_bytes(here, 1, 3) == 200 + 2 * 16 * 2


def test_a_tied_tensor_is_held_once_by_one_stage_and_twice_by_two() -> None:
    here, sizes = peer("a"), model(4, embedding_bytes=30, head_bytes=31, tied_bytes=30)
    memory = StageMemory.of(Cluster(sizes, (here,), ()), min_blocks=1)
    assert memory.weight_bytes(here, 0, 4) == 431
    assert memory.weight_bytes(here, 0, 2) + memory.weight_bytes(here, 2, 4) == 461


def test_a_peer_that_quantizes_has_room_for_more() -> None:
    smaller = ModelSizes((50,) * 4, embedding_bytes=25, head_bytes=25, hidden_size=8, activation_bytes=16)
    usual = peer("a", free_bytes=320)
    quantizing = msgspec.structs.replace(usual, peer_id=PeerId("b"), model=smaller)
    memory = StageMemory.of(Cluster(model(4), (usual, quantizing), ()), min_blocks=1)
    assert (memory.weight_bytes(usual, 0, 2), memory.weight_bytes(quantizing, 0, 2)) == (250, 125)
    assert (memory.latest_end(usual, 0), memory.latest_end(quantizing, 0)) == (2, 4)


@given(small_clusters(), st.integers(0, 5))
def test_a_peer_serves_as_many_layers_as_fit(cluster: Cluster, min_blocks: int) -> None:
    memory = StageMemory.of(cluster, min_blocks)
    chosen, num_layers = cluster.peers[0], cluster.model.num_layers
    for begin in range(num_layers):
        fitting = [end for end in range(begin + 1, num_layers + 1) if fits(memory, cluster, begin, end)]
        assert memory.latest_end(chosen, begin) == max(fitting, default=begin)
    for end in range(1, num_layers + 1):
        fitting = [begin for begin in range(end) if fits(memory, cluster, begin, end)]
        assert memory.earliest_begin(chosen, end) == min(fitting, default=end)


def fits(memory: StageMemory, cluster: Cluster, begin: int, end: int) -> bool:
    return memory.needed_bytes(cluster.peers[0], begin, end) <= cluster.peers[0].free_bytes
