"""A coordinator with real peers on this machine, and the texts of a plain server to compare with."""

from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from benchmarks.cluster import ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import UNHARMED, Ask, Load, WatchedStream, damage_of
from tests.conftest import running_server

MODEL = "distllm-embedded"
NAMES = ("ann", "bob", "cid", "dan")
NUM_STAGES = 2


@dataclass(frozen=True, slots=True)
class Servers:
    """A cluster, and a plain server of the same model to compare with."""

    cluster: Cluster
    plain_url: str


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    directory = tmp_path_factory.mktemp("cluster")
    with running_cluster(directory, num_stages=NUM_STAGES, arguments=ONE_NUMERICS) as cluster:
        for name in NAMES:
            cluster.start_peer(name)
        with running_server(ONE_NUMERICS, {}) as plain:
            cluster.wait_until_ready()
            yield Servers(cluster, plain.url)


@pytest.fixture(scope="session")
def cluster(servers: Servers) -> Cluster:
    """Two stages and two spares, which tests use up; each makes sure of what it needs by `have`."""
    return servers.cluster


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
    cluster: Cluster, asked: Sequence[Ask], expected: Sequence[WatchedStream], begin_at: float
) -> AsyncIterator[None]:
    """Within it the streams are under way, having this part of their tokens; afterwards they are as expected."""
    load = Load(cluster.base_url, asked, MODEL)
    await load.until_part(begin_at)
    yield
    assert not load.is_done, "the streams ended before anything could happen to them"
    found = await load.finish()
    assert damage_of(expected, found) == UNHARMED, [stream.error for stream in found]


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
