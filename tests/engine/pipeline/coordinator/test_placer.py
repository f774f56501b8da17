"""Plans follow from what is measured; they are left for better ones that pay back, and never wait for ever."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from distllm.engine.pipeline.coordinator.division import Seat
from distllm.engine.pipeline.coordinator.placer import Placer
from distllm.engine.pipeline.coordinator.situation import Present
from distllm.engine.pipeline.messages import Beat, MeasureFailed, StageConfig
from distllm.engine.pipeline.placement.plan_record import read_record
from distllm.engine.pipeline.placement.search import Found
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.settings import ClusterSettings
from tests.engine.pipeline.coordinator.peers import WHOLE, Peers

A, B, C = PeerId("a-1"), PeerId("b-1"), PeerId("c-1")
ALL_ON_A = (Seat((0, 8), A),)


@pytest.fixture
async def peers() -> Peers:
    return Peers()


def placer_of(peers: Peers, tmp_path: Path, patience_s: float = 60.0, **fields: Any) -> Placer:
    settings = ClusterSettings(host="127.0.0.1", port=0, state_dir=str(tmp_path), **fields)
    return Placer(peers.members, peers.survey, WHOLE, settings, patience_s)


async def test_the_split_follows_speed(peers: Peers, tmp_path: Path) -> None:
    peers.join(A)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.003})
    placer = placer_of(peers, tmp_path, num_stages=2)
    await placer.plan(Present((A, B)))
    seats = placer.seats((A, B))
    assert seats is not None
    assert {seat.peer: seat.layers[1] - seat.layers[0] for seat in seats} == {A: 6, B: 2}


async def test_the_split_follows_memory(peers: Peers, tmp_path: Path) -> None:
    """A layer has 100 bytes of weights and 16 of KV a block, and a sequence takes 64 blocks."""
    peers.join(A, free_bytes=int((1000 + 50 + 3 * (100 + 64 * 16)) / 0.8) + 1)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.001})
    placer = placer_of(peers, tmp_path, num_stages=2, objective="latency")
    await placer.plan(Present((A, B)))
    seats = placer.seats((A, B))
    assert seats is not None
    assert {seat.peer: seat.layers[1] - seat.layers[0] for seat in seats} == {A: 3, B: 5}


async def test_a_number_of_stages_is_free_unless_given(peers: Peers, tmp_path: Path) -> None:
    """For a single stream a second stage of the same speed is only another hop."""
    peers.join(A)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.001})
    free = placer_of(peers, tmp_path, objective="latency")
    await free.plan(Present((A, B)))
    assert free.seats((A, B)) == [Seat((0, 8), A)]
    given = placer_of(peers, tmp_path, objective="latency", num_stages=2)
    await given.plan(Present((A, B)))
    assert len(given.seats((A, B)) or ()) == 2


@pytest.mark.parametrize("fields", [{"min_peers": 2}, {"num_stages": 2}])
async def test_it_waits_for_as_many_peers_as_are_needed(
    peers: Peers, tmp_path: Path, fields: dict[str, int]
) -> None:
    peers.join(A)
    peers.settle({A: 0.001})
    placer = placer_of(peers, tmp_path, **fields)
    await placer.plan(Present((A,)))
    assert placer.seats((A,)) is None
    assert placer.waits_for == "peers: 1 of 2 are here"
    peers.join(B)
    peers.settle({A: 0.001, B: 0.001})
    await placer.plan(Present((A, B)))
    assert placer.seats((A, B)) is not None
    assert placer.seats((A,)) is None


async def test_it_waits_until_all_are_measured(peers: Peers, tmp_path: Path) -> None:
    peers.join(A)
    peers.join(B)
    peers.settle({A: 0.001})
    placer = placer_of(peers, tmp_path)
    await placer.plan(Present((A, B)))
    assert placer.seats((A, B)) is None
    assert placer.waits_for == "peers to measure themselves"


async def test_it_does_not_wait_for_ever(peers: Peers, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peers.join(A)
    peers.join(B)
    placer = placer_of(peers, tmp_path, patience_s=0.0)
    await placer.plan(Present((A, B)))
    assert placer.seats((A, B)) == [Seat((0, 4), A), Seat((4, 8), B)]
    assert "dividing the model evenly over 2 peers, as too few peers are measured" in caplog.text


async def test_it_does_not_wait_for_ever_for_links(peers: Peers, tmp_path: Path) -> None:
    for member in [peers.join(name) for name in (A, B)]:
        peers.survey.take(member, peers.measured(member, 0.001))
    placer = placer_of(peers, tmp_path, patience_s=0.0, num_stages=2)
    await placer.plan(Present((A, B)))
    assert placer.seats((A, B)) == [Seat((0, 4), A), Seat((4, 8), B)]


async def test_peers_that_cannot_measure_share_the_model_evenly(peers: Peers, tmp_path: Path) -> None:
    members = [peers.join(name) for name in (A, B, C)]
    peers.survey.ask()
    for member in members:
        assert peers.told(member)
        peers.survey.take(member, MeasureFailed(reason="no memory"))
    peers.settle(dict.fromkeys((A, B, C), 0.001))
    placer = placer_of(peers, tmp_path, num_stages=2)
    await placer.plan(Present((A, B, C)))
    assert placer.seats((A, B, C)) == [Seat((0, 4), A), Seat((4, 8), B)]


async def test_what_is_short_is_told(peers: Peers, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peers.join(A, free_bytes=5000)
    peers.settle({A: 0.001})
    placer = placer_of(peers, tmp_path)
    await placer.plan(Present((A,)))
    assert placer.seats((A,)) is None
    assert "more memory on any one of these peers would do" in placer.waits_for
    assert "no plan: does not fit with" in caplog.text


async def test_a_plan_that_pays_back_is_better(peers: Peers, tmp_path: Path) -> None:
    peers.join(A)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.001})
    placer = placer_of(peers, tmp_path)
    await placer.plan(Present((A, B), ALL_ON_A, num_blocks=64))
    assert placer.better is not None
    assert {seat.peer for seat in placer.better} == {A, B}
    slow = placer_of(peers, tmp_path)
    await slow.plan(Present((A, B), ALL_ON_A, num_blocks=64, reload_s=590.0))
    assert slow.better is None


async def test_a_plan_that_is_hardly_better_is_left(peers: Peers, tmp_path: Path) -> None:
    peers.join(A)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.02})
    placer = placer_of(peers, tmp_path)
    await placer.plan(Present((A, B), ALL_ON_A, num_blocks=64))
    assert placer.better is None
    assert placer.seats((A, B)) is None


async def test_what_counts_as_better_may_be_set(peers: Peers, tmp_path: Path) -> None:
    peers.join(A)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.001})
    placer = placer_of(peers, tmp_path, replan_gain=1e6)
    await placer.plan(Present((A, B), ALL_ON_A, num_blocks=64))
    assert placer.better is None


async def test_a_given_number_of_stages_is_made_up_whether_it_pays_or_not(peers: Peers, tmp_path: Path) -> None:
    peers.join(A)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.02})
    placer = placer_of(peers, tmp_path, num_stages=2)
    await placer.plan(Present((A, B), ALL_ON_A, num_blocks=64))
    assert placer.better is not None
    assert len(placer.better) == 2


async def test_better_plans_have_room_for_the_blocks_that_are_in_use(peers: Peers, tmp_path: Path) -> None:
    """The scheduler was told once how many there are."""
    peers.join(A)
    peers.join(B, free_bytes=20_000)
    peers.settle({A: 0.001, B: 0.001})
    placer = placer_of(peers, tmp_path)
    await placer.plan(Present((A, B), ALL_ON_A, num_blocks=64))
    assert placer.better is not None
    await placer.plan(Present((A, B), ALL_ON_A, num_blocks=5000))
    assert placer.better is None


async def test_those_that_are_left_share_the_model_where_no_spare_is(peers: Peers, tmp_path: Path) -> None:
    for name in (A, B):
        peers.join(name)
    peers.settle({A: 0.001, B: 0.001})
    placer = placer_of(peers, tmp_path, num_stages=3)
    serving = (Seat((0, 3), A), Seat((3, 6), C), Seat((6, 8), B))
    await placer.plan(Present((A, B), serving, num_blocks=64))
    assert placer.better is None
    assert len(placer.seats((A, B)) or ()) == 2


def part(layers: tuple[int, int]) -> StageConfig:
    return msgspec.structs.replace(WHOLE, begin=layers[0], end=layers[1])


async def test_what_could_not_be_loaded_is_not_proposed_again_until_it_may_be(peers: Peers, tmp_path: Path) -> None:
    member = peers.join(A, free_bytes=1 << 30)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.003})
    placer = placer_of(peers, tmp_path, num_stages=2)
    present = Present((A, B))
    await placer.plan(present)
    first = placer.seats((A, B))
    assert first is not None
    (layers,) = [seat.layers for seat in first if seat.peer == A]
    member.refuse(part(layers), "the disk is full")
    await placer.plan(present)
    evenly = [Seat((0, 4), A), Seat((4, 8), B)]
    assert placer.seats((A, B)) == evenly
    member.refuse(part((0, 4)), "the disk is full")
    await placer.plan(present)
    assert placer.seats((A, B)) is None
    assert placer.waits_for.startswith("peers that could not load their layers to try again: a-1: the disk is full")
    member.take_beat(Beat(boot="1", busy_s=0.0, free_bytes=2 << 30))
    await placer.plan(present)
    assert placer.seats((A, B)) == first


async def test_a_plan_without_a_peer_whose_disk_is_full_is_the_best_of_the_others(
    peers: Peers, tmp_path: Path
) -> None:
    member = peers.join(A)
    for name in (B, C):
        peers.join(name)
    peers.settle({A: 0.001, B: 0.001, C: 0.003})
    placer = placer_of(peers, tmp_path, num_stages=2)
    present = Present((A, B, C))
    await placer.plan(present)
    (layers,) = [seat.layers for seat in placer.seats((A, B, C)) or () if seat.peer == A]
    member.refuse(part(layers), "the disk is full")
    await placer.plan(present)
    seats = placer.seats((A, B, C))
    assert seats is not None
    assert {seat.peer: seat.layers[1] - seat.layers[0] for seat in seats} == {B: 6, C: 2}


@pytest.mark.parametrize(("seconds", "is_left"), [(0.0009, False), (0.0001, True)])
async def test_a_plan_that_is_being_loaded_is_left_for_a_much_better_one_alone(
    peers: Peers, tmp_path: Path, seconds: float, is_left: bool
) -> None:
    for name in (A, B):
        peers.join(name)
    peers.settle({A: 0.001, B: 0.001})
    placer = placer_of(peers, tmp_path, num_stages=2)
    await placer.plan(Present((A, B)))
    begun = placer.seats((A, B))
    peers.join(C)
    peers.settle({A: 0.001, B: 0.001, C: seconds})
    await placer.plan(Present((A, B, C)))
    seats = placer.seats((A, B, C))
    assert seats is not None
    assert (seats != begun) == is_left
    peers.members[A].end_link()
    await placer.plan(Present((B, C)))
    assert {seat.peer for seat in placer.seats((B, C)) or ()} == {B, C}


async def test_what_is_known_is_kept_for_the_operator(peers: Peers, tmp_path: Path) -> None:
    peers.join(A)
    peers.settle({A: 0.001})
    peers.join(B)
    placer = placer_of(peers, tmp_path)
    await placer.plan(Present((A, B), ALL_ON_A, num_blocks=64))
    await placer.write_record()
    record = read_record(tmp_path)
    assert record.unmeasured == {B: "it has not measured itself yet"}
    assert record.serving is not None
    assert [str(stage.peer_id) for stage in record.serving.stages] == [A]
    best = record.best()
    assert isinstance(best, Found)
    assert best.prediction == record.served


async def test_who_is_left_is_given_layers_though_it_may_have_too_little_room(peers: Peers, tmp_path: Path) -> None:
    peers.join(A, free_bytes=20_000)
    peers.settle({A: 0.001})
    placer = placer_of(peers, tmp_path)
    await placer.plan(Present((A,), (Seat((0, 4), A), Seat((4, 8), B)), num_blocks=5000))
    assert placer.seats((A,)) == [Seat((0, 8), A)]


async def test_it_grows_to_the_number_of_stages_without_measurements_too(peers: Peers, tmp_path: Path) -> None:
    peers.join(A)
    peers.join(B)
    placer = placer_of(peers, tmp_path, num_stages=2)
    await placer.plan(Present((A, B), ALL_ON_A, num_blocks=64))
    assert placer.better == [Seat((0, 4), A), Seat((4, 8), B)]


@pytest.mark.parametrize(("delay_s", "num_steps"), [(0.0, 2), (0.05, 8)])
async def test_more_steps_than_stages_are_under_way_where_links_are_slow(
    tmp_path: Path, delay_s: float, num_steps: int
) -> None:
    """Eight streams over stages of 4 ms, and 1 ms of the head, a row."""
    peers = Peers(delay_s=delay_s)
    peers.join(A)
    peers.join(B)
    peers.settle({A: 0.001, B: 0.001})
    placer = placer_of(peers, tmp_path)
    await placer.plan(Present((A, B), (Seat((0, 4), A), Seat((4, 8), B)), num_blocks=64))
    assert placer.served is not None
    assert placer.served.num_micro_batches == num_steps
