"""What clients see when peers are lost: a pause, and the tokens of a plain server."""

import asyncio
import signal
from contextlib import AbstractAsyncContextManager

import pytest

from benchmarks.cluster import Cluster
from benchmarks.watched_streams import UNHARMED, WatchedStream, damage_of, run_streams
from tests.cluster.conftest import MODEL, NAMES, PlainStreams, amid_streams, asks, have

NUM_STREAMS = 12
NUM_TOKENS = 160


@pytest.fixture(scope="module")
def expected(plain_streams: PlainStreams) -> list[WatchedStream]:
    return plain_streams(NUM_STREAMS, NUM_TOKENS)


def amid_these_streams(cluster: Cluster, expected: list[WatchedStream]) -> AbstractAsyncContextManager[None]:
    return amid_streams(cluster, asks(NUM_STREAMS, NUM_TOKENS), expected)


async def test_texts_are_those_of_a_plain_server(cluster: Cluster, expected: list[WatchedStream]) -> None:
    have(cluster, 2)
    found = await run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    assert len({stream.text for stream in found}) == NUM_STREAMS
    assert damage_of(expected, found) == UNHARMED


@pytest.mark.parametrize("stage", [0, -1])
async def test_a_spare_takes_the_place_of_a_stage_that_is_killed(
    cluster: Cluster, expected: list[WatchedStream], stage: int
) -> None:
    have(cluster, 3)
    victim, spares, num_epochs = cluster.stages[stage], cluster.spares, cluster.num_epochs
    async with amid_these_streams(cluster, expected):
        cluster.peers[victim].process.kill()
    assert cluster.pipelines[num_epochs][stage] in spares


@pytest.mark.parametrize("stage", [0, -1])
async def test_a_stage_that_stands_still_for_a_second_changes_no_token(
    cluster: Cluster, expected: list[WatchedStream], stage: int
) -> None:
    have(cluster, 2)
    victim = cluster.peers[cluster.stages[stage]]
    async with amid_these_streams(cluster, expected):
        victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1)
        victim.send_signal(signal.SIGCONT)


async def test_without_a_spare_those_that_are_left_go_on(cluster: Cluster, expected: list[WatchedStream]) -> None:
    have(cluster, 2, at_most=2)
    first, last = cluster.stages
    async with amid_these_streams(cluster, expected):
        cluster.peers[last].process.kill()
    assert cluster.stages == [first]


async def test_requests_wait_while_there_are_no_peers(cluster: Cluster, expected: list[WatchedStream]) -> None:
    have(cluster, 1, at_most=1)
    (only,) = cluster.stages
    other = next(name for name in NAMES if name != only)
    async with amid_these_streams(cluster, expected):
        cluster.peers[only].process.kill()
        cluster.start_peer(other)
    assert cluster.stages == [other]
