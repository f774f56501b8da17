"""A peer that nobody can dial takes part all the same: the coordinator passes on what is meant for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster import LOOPBACK, ONE_NUMERICS, Cluster, free_port, running_cluster
from benchmarks.watched_streams import UNHARMED, WatchedStream, damage_of, run_streams
from tests.cluster.conftest import KEPT_PLAN, MODEL, NAMES, PATIENT, PlainStreams, amid_streams, asks

NUM_STREAMS = 8
NUM_TOKENS = 120
NUM_STAGES = 3


def start_unreachable(cluster: Cluster, name: str) -> None:
    """A peer that tells others to reach it where nothing listens."""
    cluster.start_peer(name, "--port", str(free_port()), "--listen", f"{LOOPBACK}:{free_port()}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three stages and a spare, of which none can reach another."""
    directory = tmp_path_factory.mktemp("relays")
    with running_cluster(
        directory, num_stages=NUM_STAGES, coordinator=KEPT_PLAN, network=PATIENT, arguments=ONE_NUMERICS
    ) as cluster:
        for name in NAMES:
            start_unreachable(cluster, name)
        cluster.wait_until_ready()
        cluster.wait_until_serving(NUM_STAGES, num_spares=1)
        yield cluster


@pytest.fixture(scope="module")
def expected(plain_streams: PlainStreams) -> list[WatchedStream]:
    return plain_streams(NUM_STREAMS, NUM_TOKENS)


async def test_texts_are_those_of_a_plain_server(cluster: Cluster, expected: list[WatchedStream]) -> None:
    found = await run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    assert damage_of(expected, found) == UNHARMED


@pytest.mark.parametrize("stage", [1, -1])
async def test_a_stage_that_is_relayed_to_may_be_killed(
    cluster: Cluster, expected: list[WatchedStream], stage: int
) -> None:
    cluster.wait_until_serving(NUM_STAGES, num_spares=1)
    num_epochs, before, (spare,) = cluster.num_epochs, cluster.stages, cluster.spares
    victim = before[stage]
    async with amid_streams(cluster, asks(NUM_STREAMS, NUM_TOKENS), expected):
        cluster.peers[victim].process.kill()
    after = [spare if name == victim else name for name in before]
    assert all(stages == after for stages in cluster.pipelines[num_epochs:]), "also once its ways are known"
    assert cluster.num_epochs > num_epochs
    start_unreachable(cluster, victim)


async def test_stages_that_lose_sight_of_each_other_keep_their_layers(
    tmp_path: Path, expected: list[WatchedStream]
) -> None:
    with running_cluster(
        tmp_path, num_stages=2, coordinator=KEPT_PLAN, network=PATIENT, arguments=ONE_NUMERICS
    ) as cluster:
        for name in NAMES[:2]:
            cluster.start_peer(name, is_behind_links=True)
        cluster.wait_until_ready()
        stages = cluster.stages
        assert "relayed" not in cluster.log()
        inbound = cluster.peers[stages[-1]].inbound
        assert inbound is not None
        async with amid_streams(cluster, asks(NUM_STREAMS, NUM_TOKENS), expected):
            inbound.close()
        assert (cluster.stages, cluster.num_losses) == (stages, 0), cluster.log_tails()
        assert " -> relayed -> " in cluster.log()
