"""What a peer more or less changes, and when another plan pays."""

from dataclasses import replace

import pytest

from distllm.engine.pipeline.placement.measurements import PeerId
from distllm.engine.pipeline.placement.plan import Workload
from distllm.engine.pipeline.placement.prediction import Prediction
from distllm.engine.pipeline.placement.search import Found, NothingFits, search_plan
from distllm.engine.pipeline.placement.what_if import if_peer_added, if_peer_lost, pays_back, without_peer
from tests.engine.pipeline.placement.clusters import cluster, full_mesh, peer

WORKLOAD = Workload(prompt_tokens=16, output_tokens=16, num_streams=2)


def prediction(tokens_per_s: float = 100.0, tpot_s: float = 0.01) -> Prediction:
    result = search_plan(cluster(4, peer("a")), WORKLOAD, "latency")
    assert isinstance(result, Found)
    return replace(result.prediction, tokens_per_s=tokens_per_s, tpot_s=tpot_s)


def test_losing_the_faster_peer_costs_what_the_slower_one_takes_longer() -> None:
    peers = cluster(4, peer("a", 0.001), peer("b", 0.002))
    before = search_plan(peers, WORKLOAD, "latency")
    lost = if_peer_lost(peers, WORKLOAD, "latency", before, PeerId("a"))
    assert lost.change == "without a"
    assert lost.difference is not None
    assert lost.difference.tpot_s == pytest.approx(4 * 0.001)
    assert lost.difference.tokens_per_s < 0


def test_fewer_peers_than_stages_have_a_stage_each() -> None:
    peers = cluster(4, peer("a"), peer("b"))
    before = search_plan(peers, WORKLOAD, "latency", num_stages=2)
    lost = if_peer_lost(peers, WORKLOAD, "latency", before, PeerId("a"), num_stages=2)
    assert isinstance(lost.after, Found)
    assert [stage.peer_id for stage in lost.after.plan.stages] == ["b"]


def test_losing_a_peer_that_nothing_fits_without() -> None:
    peers = cluster(8, peer("a", free_bytes=900), peer("b", free_bytes=900))
    before = search_plan(peers, WORKLOAD, "latency")
    lost = if_peer_lost(peers, WORKLOAD, "latency", before, PeerId("b"))
    assert isinstance(lost.after, NothingFits)
    assert lost.difference is None


def test_an_added_peer_undoes_its_loss() -> None:
    peers = cluster(4, peer("a", 0.001), peer("b", 0.002))
    smaller = without_peer(peers, PeerId("a"))
    links = tuple(link for link in full_mesh(peers.peers) if "a" in (link.source, link.target))
    added = if_peer_added(
        smaller, WORKLOAD, "latency", search_plan(smaller, WORKLOAD, "latency"), peer("a", 0.001), links
    )
    assert added.change == "with a"
    assert added.after == search_plan(peers, WORKLOAD, "latency")
    assert added.difference is not None
    assert added.difference.tpot_s < 0


def test_a_peer_that_is_not_there_cannot_be_lost() -> None:
    peers = cluster(4, peer("a"))
    with pytest.raises(KeyError):
        if_peer_lost(peers, WORKLOAD, "latency", search_plan(peers, WORKLOAD, "latency"), PeerId("x"))


@pytest.mark.parametrize(
    ("new_tokens_per_s", "reload_s", "pays"),
    [
        (119.0, 0.0, False),
        (121.0, 0.0, True),
        (121.0, 10.0, False),
        (200.0, 39.0, True),
        (200.0, 41.0, False),
        (1e9, 101.0, False),
    ],
)
def test_another_plan_pays_if_it_gives_a_fifth_more_reload_included(
    new_tokens_per_s: float, reload_s: float, pays: bool
) -> None:
    assert pays_back(prediction(100.0), prediction(new_tokens_per_s), reload_s, horizon_s=100.0) is pays


def test_how_much_more_it_must_give_may_be_set() -> None:
    assert pays_back(prediction(100.0), prediction(111.0), 0.0, 100.0, least_gain=0.1)
    assert not pays_back(prediction(100.0), prediction(199.0), 0.0, 100.0, least_gain=1.0)


def test_for_latency_the_single_stream_counts() -> None:
    old, new = prediction(100.0, tpot_s=0.02), prediction(10.0, tpot_s=0.01)
    assert pays_back(old, new, 1.0, 100.0, "latency")
    assert not pays_back(old, new, 1.0, 100.0, "throughput")


def test_any_plan_pays_against_one_that_does_not_fit() -> None:
    assert pays_back(replace(prediction(0.0), num_running=0), prediction(0.1), 10.0, 100.0, "latency")
