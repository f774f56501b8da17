"""A peer that quantizes its layers beside one that does not; the one that is left keeps each layer as it was."""

from pathlib import Path

from benchmarks.cluster import ONE_NUMERICS, running_cluster
from benchmarks.watched_streams import run_streams
from tests.cluster.conftest import KEPT_PLAN, MODEL, PATIENT, amid_streams, asks

NUM_STREAMS = 4
NUM_TOKENS = 160


async def test_streams_go_on_with_the_same_tokens_when_the_layers_of_both_come_together(tmp_path: Path) -> None:
    with running_cluster(tmp_path, arguments=ONE_NUMERICS, coordinator=KEPT_PLAN, network=PATIENT) as cluster:
        cluster.start_peer("kim", "--quantization", "int8")
        cluster.start_peer("lee")
        cluster.wait_until_ready()
        expected = await run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
        async with amid_streams(cluster, asks(NUM_STREAMS, NUM_TOKENS), expected):
            cluster.peers["kim"].process.kill()
        assert cluster.stages == ["lee"]
        assert "up to rounding" not in cluster.log()
