"""Between stages that send their activations in fp8, a lost stage changes no token either."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.cluster import ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import WatchedStream, run_streams
from distllm.engine.embedded import checkpoint_path
from tests.cluster.conftest import NAMES, NUM_STAGES, amid_streams, asks
from tests.conftest import running_server

NUM_STREAMS = 8
NUM_TOKENS = 160


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two layers of the embedded model, which can be divided in one way alone."""
    path = tmp_path_factory.mktemp("model") / "two-layers"
    shutil.copytree(checkpoint_path(), path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": NUM_STAGES}))
    (shard,) = path.glob("*.safetensors")
    last = tuple(f"model.layers.{number}." for number in range(NUM_STAGES, config["num_hidden_layers"]))
    kept = {name: tensor for name, tensor in load_file(shard).items() if not name.startswith(last)}
    save_file(kept, shard, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def cluster(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two stages and two spares."""
    directory = tmp_path_factory.mktemp("codecs")
    with running_cluster(
        directory, num_stages=NUM_STAGES, model=str(model), network="compression: fp8", arguments=ONE_NUMERICS
    ) as cluster:
        for name in NAMES:
            cluster.start_peer(name)
        cluster.wait_until_ready()
        cluster.wait_until_serving(NUM_STAGES, num_spares=2)
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, model: Path) -> list[WatchedStream]:
    return asyncio.run(run_streams(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), str(model)))


def test_the_codec_is_told_and_changes_texts(
    cluster: Cluster, model: Path, undisturbed: list[WatchedStream]
) -> None:
    assert " -> in fp8 -> " in cluster.log()
    with running_server([str(model), *ONE_NUMERICS], {}) as plain:
        exact = asyncio.run(run_streams(plain.url, asks(NUM_STREAMS, NUM_TOKENS), str(model)))
    assert [stream.text for stream in undisturbed] != [stream.text for stream in exact]


@pytest.mark.parametrize("stage", [0, -1])
async def test_a_stage_that_is_killed_changes_no_token(
    cluster: Cluster, model: Path, undisturbed: list[WatchedStream], stage: int
) -> None:
    victim = cluster.stages[stage]
    async with amid_streams(cluster, asks(NUM_STREAMS, NUM_TOKENS), undisturbed, model=str(model)):
        cluster.peers[victim].process.kill()
    assert victim not in cluster.stages
