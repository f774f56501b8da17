"""Clusters for tests: written by hand, or drawn small enough to try every plan."""

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations
from typing import Any

from hypothesis import strategies as st

from distllm.engine.pipeline.placement.measurements import (
    COORDINATOR,
    Cluster,
    EdgeCodec,
    Link,
    ModelSizes,
    PeerId,
    PeerMeasurements,
    RowTimes,
)
from distllm.engine.pipeline.placement.plan import Plan, Stage, Workload
from distllm.engine.pipeline.placement.stage_memory import StageMemory

ROWS = (1, 2, 4, 8, 16, 32)


def peer(peer_id: str, layer_s: float = 0.001, free_bytes: int = 10_000, **given: float) -> PeerMeasurements:
    """A row costs an eighth of the time of one; a token of KV takes a byte a layer."""
    return PeerMeasurements(
        peer_id=PeerId(peer_id),
        decode=RowTimes(ROWS, tuple(layer_s * (7 + rows) / 8 for rows in ROWS)),
        head=RowTimes(ROWS, tuple(given.get("head_s", 0.002) * (7 + rows) / 8 for rows in ROWS)),
        prefill_s=given.get("prefill_s", layer_s / 10),
        free_bytes=free_bytes,
        kv_token_bytes=1,
    )


def model(num_layers: int, **given: int) -> ModelSizes:
    usual = {"embedding_bytes": 50, "head_bytes": 50, "hidden_size": 8, "activation_bytes": 16}
    sizes: dict[str, Any] = {**usual, **given}
    return ModelSizes(layer_bytes=(100,) * num_layers, **sizes)


def full_mesh(
    peers: tuple[PeerMeasurements, ...], delay_s: float = 0.001, bytes_per_s: float = 1e6
) -> tuple[Link, ...]:
    ends = [COORDINATOR, *(peer.peer_id for peer in peers)]
    return tuple(Link(source, target, delay_s, bytes_per_s) for source, target in permutations(ends, 2))


def cluster(num_layers: int, *peers: PeerMeasurements, delay_s: float = 0.001) -> Cluster:
    return Cluster(model(num_layers), peers, full_mesh(peers, delay_s))


def every_plan(cluster: Cluster, min_blocks: int) -> Iterator[Plan]:
    """All plans that fit, by trying all orders of peers and all cuts."""
    memory = StageMemory.of(cluster, min_blocks)
    num_layers = cluster.model.num_layers
    for num_stages in range(1, min(len(cluster.peers), num_layers) + 1):
        for peers in permutations(cluster.peers, num_stages):
            for cuts in combinations(range(1, num_layers), num_stages - 1):
                ranges = list(pairwise((0, *cuts, num_layers)))
                needed = zip(peers, ranges, strict=True)
                if all(memory.needed_bytes(peer, *layers) <= peer.free_bytes for peer, layers in needed):
                    stages = zip(peers, ranges, strict=True)
                    yield Plan(tuple(Stage(peer.peer_id, *layers) for peer, layers in stages))


LAYER_S = st.sampled_from([0.0005, 0.001, 0.001, 0.002]) | st.floats(1e-5, 0.01)


@st.composite
def small_clusters(draw: st.DrawFn) -> Cluster:
    """Up to four peers, and up to six layers of several sizes; some links are missing, some peers alike."""
    num_layers = draw(st.integers(1, 6))
    sizes = ModelSizes(
        layer_bytes=tuple(draw(st.lists(st.integers(10, 200), min_size=num_layers, max_size=num_layers))),
        embedding_bytes=draw(st.integers(20, 300)),
        head_bytes=draw(st.integers(20, 300)),
        hidden_size=8,
        activation_bytes=draw(st.integers(1, 2000)),
        tied_bytes=draw(st.integers(0, 20)),
    )
    peers = tuple(
        peer(
            f"peer-{number}",
            layer_s=draw(LAYER_S),
            free_bytes=draw(st.integers(0, 3000)),
            head_s=draw(LAYER_S),
            prefill_s=draw(LAYER_S),
        )
        for number in range(draw(st.integers(1, 4)))
    )
    goodputs = st.sampled_from([1e4, 1e5, 1e6]) | st.floats(1e4, 1e9)
    speeds = st.tuples(st.sampled_from([0.0, 0.001]) | st.floats(0, 0.05), goodputs)
    links = [
        Link(link.source, link.target, *draw(speeds))
        for link in full_mesh(peers)
        if draw(st.integers(0, 9)) or (COORDINATOR in (link.source, link.target) and draw(st.booleans()))
    ]
    codecs = [
        EdgeCodec(source.peer_id, target.peer_id, "fp8", draw(st.integers(1, 500)), draw(st.floats(0, 0.01)))
        for source, target in permutations(peers, 2)
        if draw(st.booleans())
    ]
    return Cluster(sizes, peers, tuple(links), tuple(codecs))


small_workloads = st.builds(
    Workload,
    prompt_tokens=st.integers(1, 60),
    output_tokens=st.integers(1, 10),
    chunk_tokens=st.integers(1, 40),
    num_streams=st.integers(1, 6),
    max_in_flight=st.integers(1, 4),
    min_blocks=st.integers(1, 8),
)
