"""The search finds what trying every plan finds."""

from random import Random
from time import thread_time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from distllm.engine.pipeline.placement.measurements import (
    COORDINATOR,
    Cluster,
    Link,
    PeerId,
    PeerMeasurements,
    RowTimes,
)
from distllm.engine.pipeline.placement.peer_choice import MAX_PEERS
from distllm.engine.pipeline.placement.plan import Objective, Plan, Stage, Workload
from distllm.engine.pipeline.placement.prediction import Prediction, predict
from distllm.engine.pipeline.placement.search import Found, NothingFits, search_plan
from tests.engine.pipeline.placement.clusters import (
    cluster,
    every_plan,
    full_mesh,
    model,
    peer,
    small_clusters,
    small_workloads,
)

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")
A, B = PeerId("a"), PeerId("b")
ONE_TOKEN = Workload(prompt_tokens=1, output_tokens=1, num_streams=1)


def found(cluster: Cluster, workload: Workload, objective: Objective) -> Found:
    result = search_plan(cluster, workload, objective)
    assert isinstance(result, Found), result
    return result


def rank(prediction: Prediction, objective: Objective) -> tuple[float, ...]:
    """Smaller is better."""
    if objective == "latency":
        return prediction.tpot_s, prediction.ttft_s
    return -prediction.num_running, -prediction.tokens_per_s


def best_by_trial(cluster: Cluster, workload: Workload, objective: Objective) -> tuple[float, ...] | None:
    ends = {(link.source, link.target) for link in cluster.links}
    reached = tuple(
        peer for peer in cluster.peers if {(COORDINATOR, peer.peer_id), (peer.peer_id, COORDINATOR)} <= ends
    )
    plans = every_plan(replace(cluster, peers=reached), max(workload.min_blocks, workload.blocks_per_stream))
    return min((rank(predict(cluster, plan, workload), objective) for plan in plans), default=None)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=150, deadline=None)
@given(cluster=small_clusters(), workload=small_workloads)
def test_no_plan_is_better_than_the_one_found(objective: Objective, cluster: Cluster, workload: Workload) -> None:
    best = best_by_trial(cluster, workload, objective)
    result = search_plan(cluster, workload, objective)
    if best is None:
        assert isinstance(result, NothingFits)
    else:
        assert isinstance(result, Found)
        assert rank(result.prediction, objective) == best


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=60, deadline=None)
@given(cluster=small_clusters(), workload=small_workloads, data=st.data())
def test_a_faster_peer_never_makes_the_best_plan_worse(
    objective: Objective, cluster: Cluster, workload: Workload, data: st.DataObject
) -> None:
    before = search_plan(cluster, workload, objective)
    assume(isinstance(before, Found))
    assert isinstance(before, Found)
    chosen = data.draw(st.sampled_from(cluster.peers))
    times = RowTimes(chosen.decode.rows, tuple(seconds * 0.7 for seconds in chosen.decode.seconds))
    faster = replace(chosen, decode=times)
    after = found(with_peer(cluster, faster), workload, objective)
    assert rank(after.prediction, objective)[:-1] <= rank(before.prediction, objective)[:-1]
    if objective == "throughput":
        assert after.prediction.tokens_per_s >= before.prediction.tokens_per_s


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=60, deadline=None)
@given(cluster=small_clusters(), workload=small_workloads, data=st.data())
def test_less_memory_never_helps(
    objective: Objective, cluster: Cluster, workload: Workload, data: st.DataObject
) -> None:
    before = search_plan(cluster, workload, objective)
    chosen = data.draw(st.sampled_from(cluster.peers))
    smaller = replace(chosen, free_bytes=data.draw(st.integers(0, chosen.free_bytes)))
    after = search_plan(with_peer(cluster, smaller), workload, objective)
    if isinstance(after, Found):
        assert isinstance(before, Found)
        assert rank(after.prediction, objective) >= rank(before.prediction, objective)


def with_peer(cluster: Cluster, changed: PeerMeasurements) -> Cluster:
    peers = tuple(changed if peer.peer_id == changed.peer_id else peer for peer in cluster.peers)
    return replace(cluster, peers=peers)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=60, deadline=None)
@given(cluster=small_clusters(), workload=small_workloads, seed=st.integers(0, 1000))
def test_the_order_of_peers_and_links_changes_nothing(
    objective: Objective, cluster: Cluster, workload: Workload, seed: int
) -> None:
    peers, links = list(cluster.peers), list(cluster.links)
    Random(seed).shuffle(peers)
    Random(seed).shuffle(links)
    shuffled = replace(cluster, peers=tuple(peers), links=tuple(links))
    assert search_plan(cluster, workload, objective) == search_plan(shuffled, workload, objective)


def test_among_equal_peers_the_smallest_id_serves() -> None:
    result = found(cluster(4, peer("c"), peer("a"), peer("b")), ONE_TOKEN, "latency")
    assert result.plan == Plan((Stage(PeerId("a"), 0, 4),))


def test_latency_takes_the_fastest_peer_and_throughput_several() -> None:
    peers = cluster(8, peer("a", 0.001), peer("b", 0.0011), peer("c", 0.0012), delay_s=0.0001)
    workload = Workload(prompt_tokens=16, output_tokens=16, num_streams=6, max_in_flight=6)
    assert len(found(peers, workload, "latency").plan.stages) == 1
    assert len(found(peers, workload, "throughput").plan.stages) > 1


def test_of_plans_with_equal_tpot_the_one_with_the_least_ttft_is_taken() -> None:
    """Two equal peers without room for all: any cut gives one TPOT. A chunk takes 1.6 ms a layer, the head 2 ms."""
    peers = cluster(8, peer("a", free_bytes=900), peer("b", free_bytes=900))
    workload = Workload(prompt_tokens=64, output_tokens=1, chunk_tokens=16, min_blocks=1)
    plan = found(replace(peers, model=model(8, embedding_bytes=0, head_bytes=0)), workload, "latency").plan
    assert [stage.num_layers for stage in plan.stages] == [5, 3]


def test_throughput_takes_a_far_link_before_a_thin_one() -> None:
    """A token takes 10 ms of the thin link from a to b; from b to a it is 25 ms on its way, others close behind."""
    peers = (peer("a", free_bytes=1300), peer("b", free_bytes=1300))
    outer = [link for link in full_mesh(peers, delay_s=0.0) if COORDINATOR in (link.source, link.target)]
    two_ways = Cluster(model(8), peers, (Link(A, B, 0.0, 1600), Link(B, A, 0.025, 1e9), *outer))
    workload = Workload(prompt_tokens=8, output_tokens=8, num_streams=8, max_in_flight=8, min_blocks=8)
    assert [stage.peer_id for stage in found(two_ways, workload, "latency").plan.stages] == ["a", "b"]
    busy = found(two_ways, workload, "throughput")
    assert [stage.peer_id for stage in busy.plan.stages] == ["b", "a"]
    assert busy.prediction.num_micro_batches == 4
    assert busy.prediction.tokens_per_s == pytest.approx(8 / (0.025 + 0.010 * 9 / 8 + 8 * 2 * 0.0001), rel=0.01)


def test_throughput_takes_as_many_streams_as_any_plan_has_room_for() -> None:
    """One stream of 32 tokens is 32 bytes a layer: beside 500 bytes of model there is room for three."""
    workload = Workload(prompt_tokens=16, output_tokens=16, num_streams=8)
    result = found(cluster(4, peer("a", free_bytes=500 + 4 * 32 * 3)), workload, "throughput")
    assert result.prediction.num_running == 3
    assert result.prediction.binding_limit == "memory of a"


def test_the_shortage_of_a_peer_is_exactly_what_it_lacks() -> None:
    peers = cluster(8, peer("a", free_bytes=400), peer("b", free_bytes=300))
    result = search_plan(peers, ONE_TOKEN, "latency")
    assert isinstance(result, NothingFits)
    for shortage in result.shortages:
        chosen = peers.peer(shortage.peer_id)
        enough = replace(chosen, free_bytes=chosen.free_bytes + shortage.short_bytes)
        assert isinstance(search_plan(with_peer(peers, enough), ONE_TOKEN, "latency"), Found)
        too_little = replace(enough, free_bytes=enough.free_bytes - 1)
        assert isinstance(search_plan(with_peer(peers, too_little), ONE_TOKEN, "latency"), NothingFits)


def test_a_peer_that_the_coordinator_does_not_reach_is_left_out() -> None:
    peers = (peer("a", 0.01), peer("b", 0.001))
    links = tuple(link for link in full_mesh(peers) if link.target != "b")
    result = found(Cluster(model(4), peers, links), ONE_TOKEN, "latency")
    assert [left.peer_id for left in result.left_out] == ["b"]
    assert "no way between" in result.left_out[0].reason
    assert [stage.peer_id for stage in result.plan.stages] == ["a"]


def test_of_more_than_ten_peers_the_fastest_are_considered() -> None:
    peers = [peer(f"p{number:02}", 0.001 * (number + 1)) for number in range(MAX_PEERS + 2)]
    result = found(cluster(4, *peers), ONE_TOKEN, "latency")
    assert [left.peer_id for left in result.left_out] == ["p10", "p11"]
    assert result.left_out[0].reason == "10 peers are faster a layer"


def test_a_peer_with_room_for_more_layers_shares_its_way_among_them() -> None:
    """A way of 20 ms there and back is 10 ms for each of two layers, and 2.9 ms for each of seven."""
    small = [peer(f"p{number:02}", 0.001, free_bytes=300) for number in range(MAX_PEERS)]
    result = found(cluster(8, *small, peer("x", 0.005, free_bytes=1000), delay_s=0.01), ONE_TOKEN, "latency")
    assert [left.peer_id for left in result.left_out] == ["p09"]


def test_of_more_than_ten_peers_the_largest_are_considered_where_the_fastest_have_no_room() -> None:
    small = [peer(f"p{number:02}", 0.001, free_bytes=200) for number in range(MAX_PEERS)]
    large = [peer("x", 0.1, free_bytes=1600), peer("y", 0.1, free_bytes=1600)]
    result = found(cluster(24, *small, *large), ONE_TOKEN, "latency")
    assert {"x", "y"} <= {stage.peer_id for stage in result.plan.stages}
    assert len(result.left_out) >= 2
    assert all("room for more layers" in left.reason for left in result.left_out)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ten_peers_and_eighty_layers_take_seconds_at_most(objective: Objective) -> None:
    """Half a second of a core, whatever else it does; the bound is for a slow one."""
    draw = Random(3)
    peers = tuple(peer(f"p{n}", draw.uniform(0.001, 0.002), free_bytes=draw.randint(1000, 2000)) for n in range(10))
    links = tuple(
        Link(link.source, link.target, draw.uniform(0.0001, 0.01), draw.uniform(1e6, 1e8))
        for link in full_mesh(peers)
    )
    workload = Workload(prompt_tokens=8, output_tokens=8, num_streams=16, max_in_flight=8, chunk_tokens=2)
    begin = thread_time()
    found(Cluster(model(80), peers, links), workload, objective)
    assert thread_time() - begin < 5


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=150, deadline=None)
@given(small_clusters(), small_workloads, st.integers(1, 5))
def test_a_given_number_of_stages_is_kept_and_the_best_of_these_is_found(
    objective: Objective, cluster: Cluster, workload: Workload, num_stages: int
) -> None:
    ends = {(link.source, link.target) for link in cluster.links}
    reached = tuple(
        peer for peer in cluster.peers if {(COORDINATOR, peer.peer_id), (peer.peer_id, COORDINATOR)} <= ends
    )
    min_blocks = max(workload.min_blocks, workload.blocks_per_stream)
    plans = every_plan(replace(cluster, peers=reached), min_blocks)
    ranks = [rank(predict(cluster, plan, workload), objective) for plan in plans if len(plan.stages) == num_stages]
    result = search_plan(cluster, workload, objective, num_stages)
    if not ranks:
        assert isinstance(result, NothingFits)
        return
    assert isinstance(result, Found)
    assert len(result.plan.stages) == num_stages
    assert rank(result.prediction, objective) == pytest.approx(min(ranks))
