"""A coordinator with real peers on this machine, and the texts of a plain server to compare with."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cache

import pytest

from benchmarks.cluster import ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import UNHARMED, Ask, Load, WatchedStream, damage_of, run_streams
from tests.conftest import running_server

MODEL = "distllm-embedded"
NAMES = ("ann", "bob", "cid", "dan")
NUM_STAGES = 2
KEPT_PLAN = "replan_gain: 1000000"
"""For tests that say who serves: by what peers measure on a busy machine, any plan may seem the best."""
PATIENT = "heartbeat_interval_seconds: 2"
"""For tests in which nobody hangs: however busy this machine is, no peer counts as silent."""


PlainStreams = Callable[[int, int], list[WatchedStream]]


@pytest.fixture(scope="session")
def plain_streams() -> Iterator[PlainStreams]:
    """What a plain server of the same model makes of `asks(num_streams, num_tokens)`."""
    with running_server(ONE_NUMERICS, {}) as plain:
        yield cache(lambda *sizes: asyncio.run(run_streams(plain.url, asks(*sizes), MODEL)))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two stages and two spares, which tests use up; each makes sure of what it needs by `have`."""
    directory = tmp_path_factory.mktemp("cluster")
    with running_cluster(
        directory, num_stages=NUM_STAGES, arguments=ONE_NUMERICS, coordinator=KEPT_PLAN
    ) as cluster:
        for name in NAMES:
            cluster.start_peer(name)
        cluster.wait_until_ready()
        yield cluster


def have(cluster: Cluster, at_least: int, at_most: int = len(NAMES)) -> None:
    """Have so many of its peers, of which two serve where there are as many and the others are warm."""
    running = [name for name, peer in cluster.peers.items() if peer.is_running]
    for name in [name for name in cluster.peers if name not in running][: max(0, at_least - len(running))]:
        cluster.start_peer(name)
    for name in cluster.spares[: max(0, len(running) - at_most)]:
        cluster.peers[name].end()
    num_running = sum(peer.is_running for peer in cluster.peers.values())
    num_stages = min(NUM_STAGES, num_running)
    cluster.wait_until_serving(num_stages, num_spares=num_running - num_stages)


def asks(num_streams: int, num_tokens: int) -> list[Ask]:
    """Half of them greedy, half sampled with a seed."""
    return [
        Ask(
            prompt=f"Once upon a time there were {number} dogs",
            num_tokens=num_tokens,
            temperature=0.8 if number % 2 else 0.0,
            seed=number,
        )
        for number in range(num_streams)
    ]


@asynccontextmanager
async def amid_streams(
    cluster: Cluster,
    asked: Sequence[Ask],
    expected: Sequence[WatchedStream],
    begin_at: float = 0.3,
    model: str = MODEL,
) -> AsyncIterator[None]:
    """Within it the streams are under way, having this part of their tokens; afterwards they are as expected."""
    load = Load(cluster.base_url, asked, model)
    await load.until_part(begin_at)
    yield
    assert not load.is_done, "the streams ended before anything could happen to them"
    found = await load.finish()
    assert damage_of(expected, found) == UNHARMED, [stream.error for stream in found]


def distllm(*words: str) -> "subprocess.CompletedProcess[str]":
    """What a command prints that ends by itself."""
    command = [sys.executable, "-m", "distllm.server", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the cluster has logged where a test of it fails."""
    report = yield
    cluster = item.funcargs.get("cluster")
    if report.failed and isinstance(cluster, Cluster):
        report.sections.append(("the cluster's logs", cluster.log_tails()))
    return report
