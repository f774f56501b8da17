"""The survey asks for what is missing, once and one for links at a time, and believes peers of themselves alone."""

import pytest

from distllm.engine.pipeline.coordinator import survey as module
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.messages import EdgeDown, Measure, MeasureFailed, Probed, ProbeLinks
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Link, PeerId
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.pipeline.coordinator.peers import GIB, SAMPLE, Peers

A, B, C = PeerId("a-1"), PeerId("b-1"), PeerId("c-1")


@pytest.fixture
async def peers() -> Peers:
    return Peers()


async def test_all_is_known_in_the_end(peers: Peers) -> None:
    for name in (A, B, C):
        peers.join(name)
    assert not peers.survey.is_settled([A])
    peers.settle({A: 0.001, B: 0.002, C: 0.003})
    assert peers.survey.is_settled([A, B, C])
    cluster = peers.survey.cluster([C, A, B])
    assert [(peer.peer_id, peer.decode.at(1)) for peer in cluster.peers] == [(A, 0.001), (B, 0.002), (C, 0.003)]
    ends = (COORDINATOR, A, B, C)
    assert {(link.source, link.target) for link in cluster.links} == {(a, b) for a in ends for b in ends if a != b}
    assert {peer.free_bytes for peer in cluster.peers} == {int(0.8 * GIB) - 1000}
    assert peers.survey.unmeasured() == {}


async def test_a_cluster_is_of_those_asked_for(peers: Peers) -> None:
    for name in (A, B):
        peers.join(name)
    peers.settle({A: 0.001, B: 0.002})
    cluster = peers.survey.cluster([B])
    assert [peer.peer_id for peer in cluster.peers] == [B]
    assert {(link.source, link.target) for link in cluster.links} == {(B, COORDINATOR), (COORDINATOR, B)}


async def test_nobody_is_asked_twice_on_a_link(peers: Peers) -> None:
    member = peers.join(A)
    peers.survey.ask()
    peers.survey.ask()
    assert [type(message) for message in peers.told(member)] == [Measure]
    member = peers.join(A)  # the same boot on another link: what it was told before may be lost
    peers.survey.ask()
    assert [type(message) for message in peers.told(member)] == [Measure]
    peers.survey.take(member, peers.measured(member, 0.001))
    peers.join(A)
    peers.survey.ask()
    assert [type(message) for message in peers.told(member)] == [ProbeLinks]


async def test_links_are_probed_by_one_peer_at_a_time(peers: Peers) -> None:
    members = [peers.join(name) for name in (A, B, C)]
    for member in members:
        peers.survey.take(member, peers.measured(member, 0.001))
    probes = 0
    for _ in range(10):
        peers.survey.ask()
        told = [(member, message) for member in members for message in peers.told(member)]
        asked = [(member, message) for member, message in told if isinstance(message, ProbeLinks)]
        assert len(asked) <= 1
        for member, message in asked:
            probes += 1
            peers.survey.take(member, peers.probed(member, message))
    assert probes == 3
    assert peers.survey.is_settled([A, B, C])


async def test_a_prober_that_leaves_holds_up_nobody(peers: Peers) -> None:
    first, second = peers.join(A), peers.join(B)
    for member in (first, second):
        peers.survey.take(member, peers.measured(member, 0.001))
    peers.survey.ask()
    assert any(isinstance(message, ProbeLinks) for message in peers.told(first))
    peers.leave(first)
    peers.settle({B: 0.001})
    assert peers.survey.is_settled([B])


async def test_a_peer_that_was_started_anew_is_measured_anew(peers: Peers) -> None:
    for name in (A, B):
        peers.join(name)
    peers.settle({A: 0.001, B: 0.002})
    peers.join(A, boot="2")
    assert not peers.survey.is_settled([A, B])
    assert [peer.peer_id for peer in peers.survey.cluster([A, B]).peers] == [B]
    peers.settle({A: 0.005, B: 0.002})
    assert peers.survey.is_settled([A, B])
    assert peers.survey.cluster([A, B]).peer(A).decode.at(1) == 0.005


async def test_who_could_not_measure_is_settled_and_no_part_of_the_cluster(peers: Peers) -> None:
    member = peers.join(A)
    peers.survey.ask()
    assert peers.told(member)
    peers.survey.take(member, MeasureFailed(reason="no memory"))
    peers.settle({A: 0.001})
    assert peers.survey.is_settled([A])
    assert peers.survey.cluster([A]).peers == ()
    assert peers.survey.unmeasured() == {A: "no memory"}


async def test_who_could_not_measure_is_asked_again(peers: Peers) -> None:
    peers.survey = Survey(peers.members, SAMPLE, first_pause_s=0.0)
    member = peers.join(A)
    for _ in range(3):
        peers.survey.ask()
        assert any(isinstance(message, Measure) for message in peers.told(member))
        peers.survey.ask()
        assert not any(isinstance(message, Measure) for message in peers.told(member)), "once before it answers"
        peers.survey.take(member, MeasureFailed(reason="busy"))
    peers.survey.ask()
    peers.survey.take(member, peers.measured(member, 0.001))
    assert peers.survey.unmeasured() == {}


async def test_an_edge_that_cannot_be_reached_is_settled_and_no_link(peers: Peers) -> None:
    first, second = peers.join(A), peers.join(B)
    for member in (first, second):
        peers.survey.take(member, peers.measured(member, 0.001))
    peers.survey.ask()
    peers.told(first)
    coordinator = (Link(A, COORDINATOR, 0.001, 1e9), Link(COORDINATOR, A, 0.001, 1e9))
    peers.survey.take(first, Probed(links=coordinator, unreachable={B: "refused"}))
    peers.settle({A: 0.001, B: 0.001})
    assert peers.survey.is_settled([A, B])
    ends = {(link.source, link.target) for link in peers.survey.cluster([A, B]).links}
    assert (A, B) not in ends
    assert (B, A) in ends


async def test_a_peer_times_and_counts_layers_as_it_wishes_them(peers: Peers) -> None:
    int8 = QuantizationConfig.named("int8")
    members = {name: peers.join(name) for name in (A, B)}
    members[B].wish = "int8"
    peers.survey.ask()
    asked = {name: peers.told(member) for name, member in members.items()}
    stages = {name: it.sample.stage for name, told in asked.items() for it in told if isinstance(it, Measure)}
    assert (stages[A].quantization, stages[B].quantization) == (None, int8)
    for member in members.values():
        peers.survey.take(member, peers.measured(member, 0.001))
    sizes = [peer.model for peer in peers.survey.cluster([A, B]).peers]
    assert sizes == [None, SAMPLE.other_sizes[int8]]


async def test_layers_that_are_settled_take_on_every_peer_what_they_take(peers: Peers) -> None:
    int8 = QuantizationConfig.named("int8")
    peers.join(A).wish = "int8"
    peers.settle({A: 0.001})
    cluster = peers.survey.cluster([A], [None] * 3 + [int8] * 5)
    assert [peer.model for peer in cluster.peers] == [None]
    assert cluster.model.layer_bytes == (100,) * 3 + (40,) * 5
    assert (cluster.model.embedding_bytes, cluster.model.head_bytes) == (50, 20)
    assert cluster.model.quantization_of(2, 4) == "w8"


async def test_a_peer_tells_nothing_of_links_between_others(peers: Peers) -> None:
    member = peers.join(A)
    peers.join(B)
    peers.join(C)
    peers.settle({B: 0.001, C: 0.001})
    before = peers.survey.cluster([B, C]).links
    peers.survey.take(member, Probed(links=(Link(B, C, 5.0, 1e9), Link(COORDINATOR, B, 5.0, 1e9)), unreachable={}))
    assert peers.survey.cluster([B, C]).links == before


async def test_an_edge_that_failed_is_tried_again_after_a_while(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = peers.join(A), peers.join(B)
    peers.settle({A: 0.001, B: 0.001})
    peers.survey.take(first, EdgeDown(epoch=1, successor=B, reason="refused"))
    assert not peers.survey.reaches(first, second)
    assert peers.survey.is_settled([A, B]), "what was found out of it is known"
    assert (A, B) not in {(link.source, link.target) for link in peers.survey.cluster([A, B]).links}
    peers.survey.ask()
    assert peers.told(first) == [], "it was tried a moment ago"
    monkeypatch.setattr(module, "_PROBE_AGAIN_S", (0.0, 0.0))
    peers.survey.take(first, EdgeDown(epoch=2, successor=B, reason="refused"))
    peers.settle({A: 0.001, B: 0.001})
    assert peers.survey.reaches(first, second)
    assert (A, B) in {(link.source, link.target) for link in peers.survey.cluster([A, B]).links}


async def test_that_one_way_is_closed_says_nothing_of_the_other(peers: Peers) -> None:
    first, second = peers.join(A), peers.join(B)
    peers.survey.take(first, EdgeDown(epoch=1, successor=B, reason="refused"))
    assert peers.survey.reaches(second, first)
