"""A peer that quantizes its layers beside one that does not; the one that is left keeps each layer as it was."""

from pathlib import Path

from benchmarks.cluster import ONE_NUMERICS, running_cluster
from benchmarks.watched_streams import UNHARMED, Load, damage_of, run_streams
from tests.cluster.conftest import MODEL, asks

NUM_STREAMS = 4
NUM_TOKENS = 160
PATIENT = "heartbeat_interval_seconds: 1.0"


async def test_streams_go_on_with_the_same_tokens_when_the_layers_of_both_come_together(tmp_path: Path) -> None:
    with running_cluster(tmp_path, arguments=ONE_NUMERICS, network=PATIENT) as cluster:
        cluster.start_peer("kim", "--quantization", "int8")
        cluster.start_peer("lee")
        cluster.wait_until_ready()
        expected = await run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
        load = Load(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
        await load.until_part(0.3)
        cluster.peers["kim"].process.kill()
        assert not load.is_done, "the streams ended before anything could happen to them"
        assert damage_of(expected, await load.finish()) == UNHARMED
        assert cluster.stages == ["lee"]
        assert "up to rounding" not in cluster.log()
