"""A cluster of machines with networks of their own, under delay, loss and cuts of real packets."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.cluster import ONE_NUMERICS, Cluster, running_cluster
from benchmarks.link import CUT, Conditions
from benchmarks.machines import Machines, linked_machines
from benchmarks.namespaces import NoNamespaces
from benchmarks.packet_link import PacketDirection
from benchmarks.watched_streams import UNHARMED, Load, WatchedStream, damage_of, run_streams
from tests.cluster.conftest import MODEL, asks
from tests.conftest import running_server

COORDINATOR, PEERS = "coordinator", ("ann", "bob")
FAR = Conditions(delay_s=0.01, loss=0.01)
NUM_STREAMS = 6
NUM_TOKENS = 100
CUT_S = 3.0


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """The tests of this module run on the coordinator's."""
    try:
        linked = linked_machines((COORDINATOR, *PEERS), FAR)
        with linked as machines, machines[COORDINATOR].entered():
            yield machines
    except NoNamespaces as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def expected(machines: Machines) -> list[WatchedStream]:
    """The streams of a plain server."""
    with running_server(ONE_NUMERICS, {}) as plain:
        return asyncio.run(run_streams(plain.url, asks(NUM_STREAMS, NUM_TOKENS), MODEL))


@pytest.fixture(scope="module")
def far_cluster(
    machines: Machines, expected: list[WatchedStream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    directory, host = tmp_path_factory.mktemp("far"), machines[COORDINATOR].address
    with running_cluster(directory, num_stages=len(PEERS), arguments=ONE_NUMERICS, host=host) as cluster:
        for name in PEERS:
            with machines[name].entered():
                cluster.start_peer(name, host=machines[name].address)
        cluster.wait_until_ready()
        yield cluster


@pytest.fixture
def cluster(far_cluster: Cluster) -> Cluster:
    """Both peers serve: one that was cut off has come back."""
    far_cluster.wait_until_serving(len(PEERS))
    return far_cluster


@asynccontextmanager
async def amid_streams(cluster: Cluster, expected: list[WatchedStream]) -> AsyncIterator[None]:
    """Within it the streams are under way; afterwards they have ended as they should."""
    load = Load(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    await load.until_part(0.2)
    yield
    found = await load.finish()
    assert damage_of(expected, found) == UNHARMED, [stream.error for stream in found]


async def test_texts_are_those_of_a_plain_server(
    cluster: Cluster, machines: Machines, expected: list[WatchedStream]
) -> None:
    num_lost = machines.direction(*PEERS).num_lost
    found = await run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    assert len({stream.text for stream in found}) == NUM_STREAMS
    assert damage_of(expected, found) == UNHARMED
    assert machines.direction(*PEERS).num_lost > num_lost, "some packets between the stages were lost"


async def test_a_machine_that_is_cut_off_and_found_again_loses_nothing(
    cluster: Cluster, machines: Machines, expected: list[WatchedStream]
) -> None:
    num_losses, victim = cluster.num_losses, cluster.stages[-1]
    async with amid_streams(cluster, expected):
        await hold_cut(machines.from_machine(victim) + machines.to_machine(victim))
    assert cluster.num_losses > num_losses


@pytest.mark.parametrize("way", ["unheard", "deaf"])
async def test_a_machine_that_is_cut_off_one_way_changes_no_token(
    cluster: Cluster, machines: Machines, expected: list[WatchedStream], way: str
) -> None:
    num_losses, victim = cluster.num_losses, cluster.stages[-1]
    async with amid_streams(cluster, expected):
        await hold_cut(machines.from_machine(victim) if way == "unheard" else machines.to_machine(victim))
    assert cluster.num_losses > num_losses


async def hold_cut(directions: list[PacketDirection]) -> None:
    for direction in directions:
        direction.become(CUT)
    await asyncio.sleep(CUT_S)
    for direction in directions:
        direction.become(FAR)
