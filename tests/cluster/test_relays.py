"""A peer that nobody can dial takes part all the same: the coordinator passes on what is meant for it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster import LOOPBACK, ONE_NUMERICS, Cluster, free_port, running_cluster
from benchmarks.watched_streams import UNHARMED, Load, WatchedStream, damage_of, run_streams
from tests.cluster.conftest import MODEL, NAMES, asks
from tests.conftest import running_server

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
    with running_cluster(directory, num_stages=NUM_STAGES, arguments=ONE_NUMERICS) as cluster:
        for name in NAMES:
            start_unreachable(cluster, name)
        cluster.wait_until_ready()
        cluster.wait_until_serving(NUM_STAGES, num_spares=1)
        yield cluster


@pytest.fixture(scope="module")
def expected() -> list[WatchedStream]:
    """The streams of a plain server."""
    with running_server(ONE_NUMERICS, {}) as plain:
        return asyncio.run(run_streams(plain.url, asks(NUM_STREAMS, NUM_TOKENS), MODEL))


async def test_texts_are_those_of_a_plain_server(cluster: Cluster, expected: list[WatchedStream]) -> None:
    found = await run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    assert damage_of(expected, found) == UNHARMED


@pytest.mark.parametrize("stage", [1, -1])
async def test_a_stage_that_is_relayed_to_may_be_killed(
    cluster: Cluster, expected: list[WatchedStream], stage: int
) -> None:
    cluster.wait_until_serving(NUM_STAGES, num_spares=1)
    victim = cluster.stages[stage]
    load = Load(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    await load.until_part(0.3)
    assert not load.is_done, "the streams ended before anything could happen to them"
    cluster.peers[victim].process.kill()
    found = await load.finish()
    assert damage_of(expected, found) == UNHARMED, [stream.error for stream in found]
    assert victim not in cluster.stages
    start_unreachable(cluster, victim)


async def test_stages_that_lose_sight_of_each_other_keep_their_layers(
    tmp_path: Path, expected: list[WatchedStream]
) -> None:
    patient = "heartbeat_interval_seconds: 2"  # whatever else this machine does, no peer counts as silent
    with running_cluster(tmp_path, num_stages=2, network=patient, arguments=ONE_NUMERICS) as cluster:
        for name in NAMES[:2]:
            cluster.start_peer(name, is_behind_links=True)
        cluster.wait_until_ready()
        stages = cluster.stages
        assert "relayed" not in cluster.log()
        load = Load(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
        await load.until_part(0.3)
        assert not load.is_done, "the streams ended before anything could happen to them"
        inbound = cluster.peers[stages[-1]].inbound
        assert inbound is not None
        inbound.close()
        found = await load.finish()
        assert damage_of(expected, found) == UNHARMED, [stream.error for stream in found]
        assert (cluster.stages, cluster.num_losses) == (stages, 0), cluster.log_tails()
        assert " -> relayed -> " in cluster.log()
