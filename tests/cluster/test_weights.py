"""Peers without a copy of the model are sent what they serve, once; one whose copy differs is told where."""

import asyncio
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.cluster import Cluster, running_cluster
from benchmarks.watched_streams import run_streams
from distllm.engine.checkpoint import open_checkpoint
from distllm.engine.embedded import checkpoint_path
from tests.cluster.conftest import MODEL, NAMES, NUM_STAGES, asks, have

_FETCHED = re.compile(r"fetching layers (\d+) to (\d+)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
CHANGED = "model.layers.4.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One of its own: what a peer has fetched before depends on what has happened to it."""
    with running_cluster(tmp_path_factory.mktemp("weights"), num_stages=NUM_STAGES) as cluster:
        for name in NAMES[:3]:
            cluster.start_peer(name)
        cluster.wait_until_ready()
        yield cluster


def cached(cluster: Cluster, name: str) -> set[str]:
    """The tensors that a peer has in its cache."""
    (directory,) = cluster.cache_of(name).iterdir()
    return set(open_checkpoint(directory).tensors)


def test_a_stage_was_sent_the_layers_that_it_was_given_alone(cluster: Cluster) -> None:
    have(cluster, 3)
    first, last = cluster.stages
    for name in (first, last):  # before the model was placed, a peer may have been given others
        given = {
            int(number) for bounds in _FETCHED.findall(cluster.peers[name].log.read_text()) for number in bounds
        }
        layers = {int(match[1]) for tensor in cached(cluster, name) if (match := _LAYER.match(tensor))}
        assert layers <= set(range(min(given), max(given) + 1))
    assert cached(cluster, first) | cached(cluster, last) == set(open_checkpoint(checkpoint_path()).tensors)


def test_a_peer_that_is_started_again_is_sent_nothing(cluster: Cluster) -> None:
    have(cluster, 3)
    (spare,) = cluster.spares
    log = cluster.peers[spare].log
    assert "fetching layers" in log.read_text()
    cluster.peers[spare].end()
    num_characters = len(log.read_text())
    cluster.start_peer(spare)
    cluster.wait_until(
        lambda: log.read_text()[num_characters:].count("packing the weights") == 2, "both are loaded"
    )
    assert "fetching" not in log.read_text()[num_characters:]


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The model, but for one number."""
    path = tmp_path / "changed"
    shutil.copytree(checkpoint_path(), path)
    tensors = load_file(path / "model.safetensors")
    tensors[CHANGED][0, 0] += 1.0
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def test_a_copy_that_differs_is_refused_on_both_sides(cluster: Cluster, changed: Path) -> None:
    have(cluster, 3)
    peer = cluster.start_peer("dan", "--model", str(changed))
    reason = f"{CHANGED} has the SHA-256"
    try:
        cluster.wait_until(lambda: reason in peer.log.read_text(), "the peer is refused")
        cluster.wait_until(lambda: reason in cluster.log(), "the coordinator tells why")
        assert "not the coordinator's model" in cluster.log()
        (stream,) = asyncio.run(run_streams(cluster.base_url, asks(1, 8), MODEL))
        assert (stream.error, len(stream.tokens)) == (None, 8)
        assert "dan" not in cluster.stages
    finally:
        cluster.peers.pop("dan").end()
