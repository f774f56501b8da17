"""A peer that its operator puts out is gone at once, for the coordinator and for all others; streams go on."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster import LOOPBACK, ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import WatchedStream
from distllm.engine.pipeline.peer.joining import join
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.transport.app import PUT_OUT
from distllm.engine.pipeline.transport.client import Http2Client
from distllm.server.cluster_removal import remove_peer
from tests.cluster.conftest import PlainStreams, amid_streams, asks, distllm

NUM_STREAMS, NUM_TOKENS = 8, 160
TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two stages and a spare, of a cluster of their own: names that were put out are of no use to others."""
    with running_cluster(tmp_path_factory.mktemp("removal"), arguments=ONE_NUMERICS) as cluster:
        for name in ("ann", "bob", "cid"):
            cluster.start_peer(name)
        cluster.wait_until_serving(2, num_spares=1)
        yield cluster


def remove(cluster: Cluster, peer_id: str) -> str:
    """What `distllm cluster remove` prints."""
    ended = distllm("cluster", "remove", peer_id, "--state", str(cluster.state_dir))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


async def answers(cluster: Cluster, identity: PeerIdentity) -> dict[str, tuple[int, bytes]]:
    """Of the coordinator and of both stages, to a call without content."""
    calls = [
        (cluster.coordinator_address, "/v1/report"),
        *((cluster.address_of(stage), "/v1/step") for stage in cluster.stages),
    ]
    found = {}
    for address, path in calls:
        client = await Http2Client.open(address, identity)
        try:
            found[str(address.peer_id)] = await client.post(path, b"", TIMEOUT_S)
        finally:
            await client.close()
    return found


async def answers_once_all_have_heard(cluster: Cluster, identity: PeerIdentity) -> set[tuple[int, bytes]]:
    """That it was put out: stages hear of it with the next beat."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = set((await answers(cluster, identity)).values())
            if {status for status, _ in found} == {PUT_OUT}:
                return found


async def test_nobody_answers_a_peer_that_was_put_out(three: Cluster, tmp_path: Path) -> None:
    identity = await join(three.coordinator_address, three.make_token(), "thief", [LOOPBACK], tmp_path / "thief")
    before = await answers(three, identity)
    assert {status for status, _ in before.values()} == {400}, "it is known, and says nothing that can be read"
    said = await asyncio.to_thread(remove, three, identity.peer_id)
    assert f"{identity.peer_id} is out" in said
    assert "is it mistyped" not in said
    reason = f"{identity.peer_id} was put out of the cluster: join it with a new token".encode()
    assert await answers_once_all_have_heard(three, identity) == {(PUT_OUT, reason)}
    assert f"{identity.peer_id} was refused: it was put out of the cluster" in three.log()


def test_a_name_that_nobody_has_is_doubted(three: Cluster) -> None:
    assert "no anm-0000 was seen here lately, is it mistyped? Seen were: " in remove(three, "anm-0000")


def test_a_token_s_command_leads_to_the_coordinator(three: Cluster) -> None:
    words = [sys.executable, "-m", "distllm.server", "token", "--state", str(three.state_dir)]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert f" --join {LOOPBACK}:{three.port} --token" in shown


@pytest.fixture(scope="module")
def expected(plain_streams: PlainStreams) -> list[WatchedStream]:
    return plain_streams(NUM_STREAMS, NUM_TOKENS)


async def test_streams_go_on_without_a_stage_that_is_put_out(three: Cluster, expected: list[WatchedStream]) -> None:
    async with amid_streams(three, asks(NUM_STREAMS, NUM_TOKENS), expected):
        victim = three.stages[-1]
        assert remove_peer(three.state_dir, three.address_of(victim).peer_id) == 0  # as `remove`, but at once
    assert victim not in three.stages
    peer = three.peers[victim]
    assert await asyncio.to_thread(peer.process.wait, TIMEOUT_S) == 1
    assert "this peer left the cluster: it was put out" in peer.log.read_text()
    again = three.start_peer(victim)
    assert await asyncio.to_thread(again.process.wait, TIMEOUT_S) == 1
    assert "was put out of the cluster: join it with a new token" in again.log.read_text()
