"""How steps come to stages: straight where that is possible, and in one codec for as long as a boundary is used."""

import pytest
from msgspec.structs import replace

from distllm.engine.pipeline.coordinator.members import Member
from distllm.engine.pipeline.coordinator.routes import Route, Routes, chain_of
from distllm.engine.pipeline.coordinator.stage import Stage
from distllm.engine.pipeline.messages import EdgeDown, Measured, Probed
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Link, PeerId
from distllm.engine.pipeline.security import peer_id as certified
from distllm.engine.pipeline.wire.codec_choice import CodecCost
from distllm.engine.pipeline.wire.codec_names import CodecName, Compression
from tests.engine.pipeline.coordinator.peers import WHOLE, Peers, times
from tests.scheduler.slot_executor import executor_info

A, B, C = PeerId("a-1"), PeerId("b-1"), PeerId("c-1")
FAST, SLOW = 1e10, 1e6
COSTS: dict[CodecName, CodecCost] = {
    "none": CodecCost(bytes_per_token=8192, encode_rows_per_s=1e9, decode_rows_per_s=1e9),
    "fp8": CodecCost(bytes_per_token=4100, encode_rows_per_s=1e5, decode_rows_per_s=1e5),
}


@pytest.fixture
async def peers() -> Peers:
    peers = Peers()
    for name in (A, B, C):
        peers.join(name)
    return peers


def member(peers: Peers, name: str) -> Member:
    return peers.members[certified.PeerId(name)]


def stages_over(*names: str) -> list[Stage]:
    """With two layers each."""
    info = executor_info(8, 16, 64)
    return [
        Stage(replace(WHOLE, begin=2 * number, end=2 * number + 2), certified.PeerId(name), "1", info)
        for number, name in enumerate(names)
    ]


def routes_of(peers: Peers, compression: Compression = "none") -> Routes:
    return Routes(peers.members, peers.survey, compression)


def measure(peers: Peers, name: PeerId, other: PeerId, bytes_per_s: float) -> None:
    """A peer's codecs and its link to another."""
    here = member(peers, name)
    peers.survey.ask()
    peers.survey.take(here, Measured(times=times(0.001), free_bytes=1, codecs=COSTS))
    peers.survey.ask()
    ways = [(name, other), (name, COORDINATOR), (COORDINATOR, name)]
    peers.survey.take(here, Probed(links=tuple(Link(*way, 0.001, bytes_per_s) for way in ways), unreachable={}))


async def test_until_more_is_known_stages_send_straight_to_each_other(peers: Peers) -> None:
    assert routes_of(peers).of(stages_over(A, B)) == [Route(link=1), Route()]


async def test_what_cannot_be_reached_is_relayed_to_and_nothing_else(peers: Peers) -> None:
    routes, stages = routes_of(peers), stages_over(A, B, C)
    peers.survey.take(member(peers, A), EdgeDown(epoch=1, successor=B, reason="refused"))
    assert [route.is_direct for route in routes.of(stages)] == [False, False, True]
    assert [route.is_direct for route in routes.of(stages_over(B, A, C))] == [False, True, True]


async def test_a_target_that_was_started_anew_may_be_reached(peers: Peers) -> None:
    peers.survey.take(member(peers, A), EdgeDown(epoch=1, successor=B, reason="refused"))
    peers.join(B, boot="2")
    assert routes_of(peers).of(stages_over(A, B))[1].is_direct


async def test_a_new_link_is_another_route_for_those_who_get_steps_by_it(peers: Peers) -> None:
    routes, stages = routes_of(peers), stages_over(A, B)
    before = routes.of(stages)
    member(peers, B).begin_link()
    assert routes.of(stages) == before, "nothing goes to it by its link"
    member(peers, A).begin_link()
    assert routes.of(stages) != before


async def test_a_codec_that_was_asked_for_is_that_of_every_edge(peers: Peers) -> None:
    routes = routes_of(peers, "fp8").of(stages_over(A, B, C))
    assert [route.codec for route in routes] == ["none", "fp8", "fp8"]


@pytest.mark.parametrize(("bytes_per_s", "codec"), [(SLOW, "fp8"), (FAST, "none")])
async def test_auto_follows_the_link_s_goodput(peers: Peers, bytes_per_s: float, codec: CodecName) -> None:
    measure(peers, A, B, bytes_per_s)
    measure(peers, B, A, bytes_per_s)
    assert routes_of(peers, "auto").of(stages_over(A, B))[1].codec == codec


async def test_auto_is_none_where_nothing_is_measured(peers: Peers) -> None:
    assert routes_of(peers, "auto").of(stages_over(A, B))[1].codec == "none"


async def test_a_boundary_keeps_its_codec_whoever_is_there(peers: Peers) -> None:
    for name, other, bytes_per_s in ((A, B, SLOW), (B, A, FAST), (C, B, FAST)):
        measure(peers, name, other, bytes_per_s)
    routes = routes_of(peers, "auto")
    assert routes.of(stages_over(A, B))[1].codec == "fp8"
    assert routes.of(stages_over(C, B))[1].codec == "fp8", "a replacement is sent the same bits"
    assert routes_of(peers, "auto").of(stages_over(C, B))[1].codec == "none"


async def test_the_goodput_of_a_relayed_edge_is_that_of_both_its_ways(peers: Peers) -> None:
    measure(peers, A, B, SLOW)
    measure(peers, B, A, SLOW)
    ends = member(peers, A), member(peers, B)
    assert peers.survey.goodput(*ends) == SLOW
    peers.survey.take(ends[0], EdgeDown(epoch=1, successor=B, reason="refused"))
    assert peers.survey.goodput(*ends) == pytest.approx(SLOW / 2)


async def test_a_chain_tells_how_activations_go_where_that_is_not_as_they_are() -> None:
    stages = stages_over(A, B, C)
    routes = [Route(link=1), Route("fp8", link=2), Route()]
    assert chain_of(stages, routes) == "a-1 [0, 2) -> relayed, in fp8 -> b-1 [2, 4) -> c-1 [4, 6)"


async def test_predictions_are_of_the_codec_that_would_be_used(peers: Peers) -> None:
    measure(peers, A, B, SLOW)
    measure(peers, B, A, FAST)
    for compression, expected in (("none", []), ("auto", [(A, B)]), ("fp8", [(A, B), (B, A)])):
        found = peers.survey.cluster((A, B), compression=compression).codecs  # type: ignore[arg-type]
        assert [(it.source, it.target) for it in found] == expected
        assert all((it.codec, it.token_bytes) == ("fp8", 4100) for it in found)
        assert all(it.coding_s == pytest.approx(2e-5) for it in found)


@pytest.mark.parametrize(("compression", "is_told"), [("fp8", True), ("none", False)])
async def test_it_is_told_where_activations_lose_precision_elsewhere(
    peers: Peers, compression: Compression, is_told: bool
) -> None:
    routes = routes_of(peers, compression)
    three, two = stages_over(A, B, C), stages_over(A, C)
    assert routes.settle(three, routes.of(three)) is None
    assert routes.settle(three, routes.of(three)) is None
    change = routes.settle(two, routes.of(two))
    expected = (
        "activations lose precision elsewhere: now before layer 2 in fp8, until now before layer 2 in fp8, before "
        "layer 4 in fp8; from here on tokens are the same up to rounding"
    )
    assert change == (expected if is_told else None)
