"""What becomes of a stage whose results cannot be: it is found out, and others answer in its place."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from benchmarks.cluster import LOOPBACK, ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import UNHARMED, Load, WatchedStream, damage_of
from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.peer.joining import join
from distllm.engine.pipeline.peer.start import PeerStart
from distllm.engine.pipeline.weights.folders import WeightFolders
from tests.cluster.conftest import MODEL, PlainStreams, asks
from tests.cluster.lying_peer import TOKEN

NUM_STREAMS = 4
NUM_TOKENS = 24


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of one stage, without peers."""
    with running_cluster(tmp_path, num_stages=1, arguments=ONE_NUMERICS) as cluster:
        yield cluster


@contextmanager
def lying(cluster: Cluster) -> Iterator[Path]:
    """A peer that lies; the file that it logs to."""
    cluster.wait_until(lambda: "peers may join" in cluster.log(), "the coordinator listens")
    coordinator = cluster.coordinator_address
    directory, log = cluster.directory / "liar", cluster.directory / "liar.log"
    asyncio.run(join(coordinator, cluster.make_token(), "liar", [LOOPBACK], directory))
    start = PeerStart(
        coordinator=coordinator,
        directory=str(directory),
        here=EngineConfig(model="", num_threads=1),
        weights=WeightFolders(copy=None, cache=str(directory / "weights"), hashes=str(directory / "hashes")),
        host=LOOPBACK,
        port=0,
        log_level="INFO",
    )
    words = [sys.executable, "-m", "tests.cluster.lying_peer", msgspec.json.encode(start).decode()]
    with log.open("wb") as output, subprocess.Popen(words, stdout=output, stderr=output) as process:
        try:
            yield log
        finally:
            process.kill()


async def streams_outlive(liar: Path, cluster: Cluster, expected: list[WatchedStream]) -> None:
    """Streams that begin with the liar go on with an honest peer."""
    load = Load(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    reason = f"sampled token {TOKEN} of a vocabulary of"

    def is_found_out() -> bool:
        return reason in cluster.log() and reason in liar.read_text()

    await asyncio.to_thread(cluster.wait_until, is_found_out, "both sides say what is wrong")
    cluster.start_peer("honest")
    found = await load.finish()
    assert damage_of(expected, found) == UNHARMED, [stream.error for stream in found]
    assert cluster.stages == ["honest"]


def test_a_stage_that_samples_no_token_of_the_vocabulary_is_replaced(
    plain_streams: PlainStreams, alone: Cluster
) -> None:
    with lying(alone) as log:
        alone.wait_until_ready()
        asyncio.run(streams_outlive(log, alone, plain_streams(NUM_STREAMS, NUM_TOKENS)))
