"""A peer's stages load from what it fetched, or from its copy if that is the coordinator's model; nothing else."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import CheckpointError, open_checkpoint
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.messages import Endpoint
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.stage_model.plan import plan_stage
from distllm.engine.pipeline.transport.app import Reply
from distllm.engine.pipeline.transport.client import Address
from distllm.engine.pipeline.weights.folders import WeightFolders
from distllm.engine.pipeline.weights.messages import HOLDERS_PATH, HoldersRequest
from distllm.engine.pipeline.weights.source import WeightSource
from distllm.engine.pipeline.weights.stage_weights import StageWeights
from distllm.engine.served_model import ServedModel, prepare_model
from tests.engine.pipeline.stages import config_of, load_stages, run_stages
from tests.engine.pipeline.weights.machines import (
    MAX_BYTES,
    Cluster,
    WatchedSource,
    fingerprint,
    hold,
    stage_config,
)
from tests.engine.test_forward import NUM_BLOCKS, SCHEDULES

NOWHERE = Address(COORDINATOR, "127.0.0.1", 9)


@pytest.fixture
def compute() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


Peer = Callable[..., StageWeights]


@pytest.fixture
def peer(cluster: Cluster, compute: ThreadPoolExecutor, tmp_path: Path) -> Peer:
    """peer(address, copy): the weights of a peer whose coordinator is at an address."""

    def make(coordinator: Address, copy: Path | None = None, name: str = "peer-1") -> StageWeights:
        folders = WeightFolders(
            copy=None if copy is None else str(copy),
            cache=str(tmp_path / name / "cache"),
            hashes=str(tmp_path / name / "hashes"),
        )
        return StageWeights(folders, coordinator, cluster.connect_as(name), compute)

    return make


def held_bytes(path: Path, begin: int, end: int) -> dict[str, int]:
    """What a stage of a whole checkpoint holds, by name."""
    stage = plan_stage(path, LayerRange(begin, end, 3)).checkpoint
    return {name: tensor.num_bytes for name, tensor in stage.tensors.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "phi3"])
async def test_stages_of_fetched_weights_have_the_bits_of_the_checkpoint(
    cluster: Cluster, peer: Peer, checkpoint: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    path = checkpoint(kind)
    holding = hold(path, tmp_path / "hashes")
    stages = []
    for begin, end in ((0, 1), (1, 2), (2, 3)):
        source = WatchedSource(holding)
        async with cluster.serving(source.posts, COORDINATOR) as address:
            weights = peer(address, name=f"peer-{begin}")
            fetched = await weights.obtain(stage_config(fingerprint(holding), begin, end), lambda *_: None)
        assert source.asked == held_bytes(path, begin, end)
        assert sorted(open_checkpoint(fetched).tensors) == sorted(source.asked)
        stages.append(load(fetched, begin, end).stage_over(NUM_BLOCKS))
    whole = load_stages(config_of(path), (1, 2), NUM_BLOCKS)
    for step in SCHEDULES[0]():
        chunks = [part.chunk() for part in step]
        batch = build_step_tensors(chunks, range(sum(part.end - part.start for part in step)))
        assert torch.equal(run_stages(stages, batch).whole, run_stages(whole, batch).whole)


def load(path: Path, begin: int, end: int) -> ServedModel:
    return prepare_model(config_of(path), lambda *_: None, layers=LayerRange(begin, end, 3))


async def test_other_layers_are_fetched_when_they_are_served_and_none_twice(
    cluster: Cluster, peer: Peer, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = checkpoint("qwen3")
    holding = hold(path, tmp_path / "hashes")
    source = WatchedSource(holding)
    async with cluster.serving(source.posts) as address:
        weights = peer(address)
        await weights.obtain(stage_config(fingerprint(holding), 0, 2), lambda *_: None)
        assert source.asked == held_bytes(path, 0, 2)
        fetched = await weights.obtain(stage_config(fingerprint(holding), 1, 3), lambda *_: None)
        assert source.asked == held_bytes(path, 0, 2) | held_bytes(path, 1, 3)
        assert source.num_manifests == 1
    assert sorted(plan_stage(fetched, LayerRange(1, 3, 3)).checkpoint.tensors) == sorted(held_bytes(path, 1, 3))
    found = weights.find_holding(fingerprint(holding))
    assert found is not None
    assert found.manifest == holding.manifest
    assert found.places.keys() == holding.places.keys()


async def test_what_is_in_the_cache_needs_no_coordinator(
    cluster: Cluster, peer: Peer, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    holding = hold(checkpoint("llama"), tmp_path / "hashes")
    config = stage_config(fingerprint(holding), 1, 3)
    async with cluster.serving(WatchedSource(holding).posts) as address:
        fetched = await peer(address).obtain(config, lambda *_: None)
    assert await peer(NOWHERE).obtain(config, lambda *_: None) == fetched


async def test_a_manifest_of_another_model_is_refused(
    cluster: Cluster, peer: Peer, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    asked, other = (hold(checkpoint(kind), tmp_path / "hashes") for kind in ("llama", "qwen3"))
    liar = WeightSource({fingerprint(asked): other}.get, MAX_BYTES)
    async with cluster.serving(liar.posts) as address:
        with pytest.raises(CheckpointError, match="not the one that its fingerprint names"):
            await peer(address).obtain(stage_config(fingerprint(asked), 0, 1), lambda *_: None)


async def test_what_is_no_fingerprint_opens_no_file(peer: Peer, checkpoint: Callable[[str], Path]) -> None:
    config = stage_config("../../../../etc", 0, 1)
    with pytest.raises(CheckpointError, match="is no fingerprint of a model"):
        await peer(NOWHERE).obtain(config, lambda *_: None)


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """Another directory with the same model, its tensors in another order."""
    path = tmp_path / "copy"
    shutil.copytree(checkpoint("llama"), path)
    tensors = load_file(path / "model.safetensors")
    save_file(dict(reversed(tensors.items())), path / "model.safetensors", {"format": "pt"})
    return path


async def test_a_copy_of_the_model_is_taken_without_fetching_weights(
    cluster: Cluster, peer: Peer, checkpoint: Callable[[str], Path], copy: Path, tmp_path: Path
) -> None:
    holding = hold(checkpoint("llama"), tmp_path / "hashes")
    source = WatchedSource(holding)
    async with cluster.serving(source.posts) as address:
        weights = peer(address, copy)
        assert await weights.obtain(stage_config(fingerprint(holding), 0, 1), lambda *_: None) == copy
        assert await weights.obtain(stage_config(fingerprint(holding), 2, 3), lambda *_: None) == copy
    assert source.asked == {}
    found = weights.find_holding(fingerprint(holding))
    assert found is not None
    assert found.places.keys() == held_bytes(copy, 0, 1).keys() | held_bytes(copy, 2, 3).keys()


async def test_a_copy_that_differs_in_one_tensor_is_no_copy_where_that_is_needed(
    cluster: Cluster, peer: Peer, checkpoint: Callable[[str], Path], copy: Path, tmp_path: Path
) -> None:
    holding = hold(checkpoint("llama"), tmp_path / "hashes")
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] += 1e-3
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    async with cluster.serving(WatchedSource(holding).posts) as address:
        weights = peer(address, copy)
        assert await weights.obtain(stage_config(fingerprint(holding), 0, 1), lambda *_: None) == copy
        reason = rf"{name} has the SHA-256 [0-9a-f]{{12}} here and [0-9a-f]{{12}} there"
        with pytest.raises(CheckpointError, match=reason):
            await weights.obtain(stage_config(fingerprint(holding), 1, 2), lambda *_: None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("half", "is BF16 .* here and F32 .* there"),
        ("missing", "it has no model.layers.1.mlp.up_proj.weight"),
        ("config", "in config.json they differ in rms_norm_eps"),
    ],
)
async def test_what_differs_is_named(
    cluster: Cluster,
    peer: Peer,
    checkpoint: Callable[[str], Path],
    copy: Path,
    tmp_path: Path,
    change: str,
    reason: str,
) -> None:
    holding = hold(checkpoint("llama"), tmp_path / "hashes")
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    config = (copy / "config.json").read_text()
    match change:
        case "half":
            tensors[name] = tensors[name].bfloat16()
        case "missing":
            del tensors[name]
        case "config":
            (copy / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    async with cluster.serving(WatchedSource(holding).posts) as address:
        with pytest.raises(CheckpointError, match=reason):
            await peer(address, copy).obtain(stage_config(fingerprint(holding), 1, 2), lambda *_: None)


async def test_a_config_of_another_version_of_transformers_is_no_other(
    cluster: Cluster, peer: Peer, checkpoint: Callable[[str], Path], copy: Path, tmp_path: Path
) -> None:
    holding = hold(checkpoint("llama"), tmp_path / "hashes")
    config = msgspec.json.decode((copy / "config.json").read_bytes())
    (copy / "config.json").write_bytes(msgspec.json.encode({**config, "transformers_version": "4.0.0"}))
    async with cluster.serving(WatchedSource(holding).posts) as address:
        assert await peer(address, copy).obtain(stage_config(fingerprint(holding), 0, 3), lambda *_: None) == copy


async def test_a_peer_that_has_the_layers_gives_them_to_others(
    cluster: Cluster, peer: Peer, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    holding = hold(checkpoint("llama"), tmp_path / "hashes")
    config = stage_config(fingerprint(holding), 1, 3)
    source = WatchedSource(holding)
    async with cluster.serving(source.posts) as address:
        holder = peer(address, name="peer-1")
        await holder.obtain(config, lambda *_: None)
    num_asked = source.asked.total()
    held = holder.find_holding(fingerprint(holding))
    assert held is not None
    watched = WatchedSource(held)
    async with cluster.serving(watched.posts, "peer-1") as place:

        async def name_holder(caller: PeerId | None, body: bytes) -> Reply:
            request = msgspec.msgpack.decode(body, type=HoldersRequest)
            assert (caller, request.begin, request.end) == ("peer-2", 1, 3)
            endpoint = Endpoint(peer_id=place.peer_id, host=place.host, port=place.port)
            return Reply(200, msgspec.msgpack.encode([endpoint]))

        async with cluster.serving({**source.posts, HOLDERS_PATH: name_holder}) as address:
            fetched = await peer(address, name="peer-2").obtain(config, lambda *_: None)
    assert watched.asked == held_bytes(checkpoint("llama"), 1, 3)
    assert source.asked.total() == num_asked
    assert sorted(open_checkpoint(fetched).tensors) == sorted(watched.asked)


async def test_a_model_that_is_served_no_more_makes_way_for_the_next(
    cluster: Cluster, compute: ThreadPoolExecutor, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    first, second = (hold(checkpoint(kind), tmp_path / "hashes") for kind in ("llama", "gpt2"))
    held = {fingerprint(holding): holding for holding in (first, second)}
    cache = tmp_path / "cache"
    folders = WeightFolders(copy=None, cache=str(cache), hashes=str(tmp_path / "own"), cache_limit_bytes=1)
    async with cluster.serving(WeightSource(held.get, MAX_BYTES).posts, COORDINATOR) as address:
        weights = StageWeights(folders, address, cluster.connect_as("peer-1"), compute)
        await weights.obtain(stage_config(fingerprint(first), 0, 1), lambda *_: None)
        await weights.obtain(stage_config(fingerprint(first), 1, 3), lambda *_: None)
        assert [path.name for path in cache.iterdir()] == [fingerprint(first)]
        assert weights.find_holding(fingerprint(first)) is not None
        fetched = await weights.obtain(stage_config(fingerprint(second), 0, 1), lambda *_: None)
        assert list(cache.iterdir()) == [fetched]
        assert weights.find_holding(fingerprint(first)) is None
