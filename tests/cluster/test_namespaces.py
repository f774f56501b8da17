"""A cluster of machines with networks of their own, under delay, loss and cuts of real packets."""

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.cluster import ONE_NUMERICS, Cluster, running_cluster
from benchmarks.link import CUT, Conditions
from benchmarks.machines import Machines
from benchmarks.packet_link import PacketDirection
from benchmarks.watched_streams import UNHARMED, WatchedStream, damage_of, run_streams
from tests.cluster.conftest import MODEL, PlainStreams, amid_streams, asks
from tests.machines import machines_if_allowed

COORDINATOR, PEERS = "coordinator", ("ann", "bob")
FAR = Conditions(delay_s=0.01, rate=125e6, loss=0.01)
NUM_STREAMS = 6
NUM_TOKENS = 200
"""At a round trip a token, too many for a stream to end before a cut does."""
BEGIN_AT = 0.1
CUT_S = 3.0


@pytest.fixture(scope="module")
def machines(expected: list[WatchedStream]) -> Iterator[Machines]:
    """The tests of this module run on the coordinator's, from where no other server is reached."""
    with machines_if_allowed((COORDINATOR, *PEERS), FAR) as machines, machines[COORDINATOR].entered():
        yield machines


@pytest.fixture(scope="module")
def expected(plain_streams: PlainStreams) -> list[WatchedStream]:
    return plain_streams(NUM_STREAMS, NUM_TOKENS)


@pytest.fixture(scope="module")
def far_cluster(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory, host = tmp_path_factory.mktemp("far"), machines[COORDINATOR].address
    with running_cluster(directory, num_stages=len(PEERS), arguments=ONE_NUMERICS, host=host) as cluster:
        for name in PEERS:
            with machines[name].entered():
                cluster.start_peer(name, host=machines[name].address)
        cluster.wait_until_ready()
        yield cluster


@pytest.fixture
def cluster(far_cluster: Cluster) -> Cluster:
    """Both peers serve, also one that a test before has cut off."""
    far_cluster.wait_until_serving(len(PEERS))
    return far_cluster


async def test_texts_are_those_of_a_plain_server(
    cluster: Cluster, machines: Machines, expected: list[WatchedStream]
) -> None:
    found = await run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    assert len({stream.text for stream in found}) == NUM_STREAMS
    assert damage_of(expected, found) == UNHARMED
    assert sum(direction.num_lost for direction in machines.directions()) > 0


@pytest.mark.parametrize("way", ["both ways", "to it", "from it"])
async def test_a_machine_that_is_cut_off_and_found_again_changes_no_token(
    cluster: Cluster, machines: Machines, expected: list[WatchedStream], way: str
) -> None:
    num_losses, victim = cluster.num_losses, cluster.stages[-1]
    to_it, from_it = machines.to_machine(victim), machines.from_machine(victim)
    async with amid_streams(cluster, asks(NUM_STREAMS, NUM_TOKENS), expected, BEGIN_AT):
        await hold_cut({"both ways": to_it + from_it, "to it": to_it, "from it": from_it}[way])
    assert cluster.num_losses > num_losses


async def test_stages_that_are_cut_off_from_each_other_one_way_change_no_token(
    cluster: Cluster, machines: Machines, expected: list[WatchedStream]
) -> None:
    first, last = cluster.stages
    async with amid_streams(cluster, asks(NUM_STREAMS, NUM_TOKENS), expected, BEGIN_AT):
        await hold_cut([machines.direction(first, last)])


async def hold_cut(directions: list[PacketDirection]) -> None:
    for direction in directions:
        direction.become(CUT)
    try:
        await asyncio.sleep(CUT_S)
    finally:
        for direction in directions:
            direction.become(FAR)
