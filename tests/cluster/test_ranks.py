"""A stage that two processes share, beside one that is not: clients see neither that nor the loss of a process."""

import asyncio
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.cluster import ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import WatchedStream, run_streams
from tests.cluster.conftest import KEPT_PLAN, MODEL, PATIENT, amid_streams, asks

RANKED = ("eve", "gus")
TWO_RANKS = ("--tensor-parallel-size", "2", "--rank-timeout-s", "10")
NUM_STREAMS = 6
NUM_TOKENS = 160
TIMEOUT_S = 300.0  # two processes a stage start


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two stages, of which one is over two ranks, and later a spare that has two as well."""
    directory = tmp_path_factory.mktemp("ranks")
    with running_cluster(directory, arguments=ONE_NUMERICS, coordinator=KEPT_PLAN, network=PATIENT) as cluster:
        cluster.start_peer("eve", *TWO_RANKS)
        cluster.start_peer("fay")
        cluster.wait_until(lambda: len(cluster.stages) == 2, "both serve", TIMEOUT_S)
        cluster.wait_until_ready()
        yield cluster


@pytest.fixture(scope="module")
def expected(cluster: Cluster) -> list[WatchedStream]:
    """The streams without a loss."""
    found = asyncio.run(run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL))
    assert [stream.error for stream in found] == [None] * NUM_STREAMS
    return found


def ranks_of(cluster: Cluster, name: str) -> list[psutil.Process]:
    """The processes of a peer's stages but their first ones."""
    children = psutil.Process(cluster.peers[name].process.pid).children(recursive=True)
    return [child for child in children if "distllm.engine.distributed.rank" in child.cmdline()]


def ranked_stage(cluster: Cluster) -> str:
    (name,) = (name for name in cluster.stages if name in RANKED)
    return name


async def lose_a_rank(cluster: Cluster, expected: list[WatchedStream]) -> str:
    """Whose it was; streams go on meanwhile as they should."""
    victim = ranked_stage(cluster)
    async with amid_streams(cluster, asks(NUM_STREAMS, NUM_TOKENS), expected):
        for rank in ranks_of(cluster, victim):
            rank.kill()
    return victim


async def test_a_spare_takes_the_place_of_a_stage_that_loses_a_rank_whose_peer_serves_again(
    cluster: Cluster, expected: list[WatchedStream]
) -> None:
    cluster.start_peer("gus", *TWO_RANKS)
    for _ in range(2):
        cluster.wait_until(lambda: cluster.num_warm_spares >= 1, "a spare is warm", TIMEOUT_S)
        victim = await lose_a_rank(cluster, expected)
        assert ranked_stage(cluster) != victim
        assert cluster.peers[victim].is_running, "a peer outlives its ranks"
    assert "up to rounding" not in cluster.log()
