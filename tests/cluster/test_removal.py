"""A peer that its operator puts out is gone at once, for the coordinator and for all others; streams go on."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster import LOOPBACK, ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import UNHARMED, Load, damage_of, run_streams
from distllm.engine.pipeline.peer.joining import join
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.security.peer_id import COORDINATOR
from distllm.engine.pipeline.transport.client import Address, Http2Client
from tests.cluster.conftest import MODEL, Servers, asks

NUM_STREAMS, NUM_TOKENS = 8, 96
TIMEOUT_S = 120.0


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
    words = ["cluster", "remove", peer_id, "--state", str(cluster.state_dir)]
    ended = subprocess.run(
        [sys.executable, "-m", "distllm.server", *words], capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout + ended.stderr


async def answers(cluster: Cluster, identity: PeerIdentity) -> dict[str, tuple[int, bytes]]:
    """Of the coordinator and of both stages, to a call without content."""
    coordinator = Address(COORDINATOR, LOOPBACK, cluster.port)
    calls = [(coordinator, "/v1/report"), *((cluster.address_of(stage), "/v1/step") for stage in cluster.stages)]
    found = {}
    for address, path in calls:
        client = await Http2Client.open(address, identity)
        try:
            found[str(address.peer_id)] = await client.post(path, b"", TIMEOUT_S)
        finally:
            await client.close()
    return found


async def test_nobody_answers_a_peer_that_was_put_out(three: Cluster, tmp_path: Path) -> None:
    coordinator = Address(COORDINATOR, LOOPBACK, three.port)
    identity = await join(coordinator, three.make_token(), "thief", [LOOPBACK], tmp_path / "thief")
    before = await answers(three, identity)
    assert {status for status, _ in before.values()} == {400}, "it is known, and says nothing that can be read"
    said = await asyncio.to_thread(remove, three, identity.peer_id)
    assert f"{identity.peer_id} is out" in said
    assert "is it mistyped" not in said
    for _ in range(100):  # stages hear of it with the next beat
        after = await answers(three, identity)
        if {status for status, _ in after.values()} == {410}:
            break
        await asyncio.sleep(0.05)
    reason = f"{identity.peer_id} was put out of the cluster: join it with a new token".encode()
    assert set(after.values()) == {(410, reason)}
    assert f"{identity.peer_id} was refused: it was put out of the cluster" in three.log()


def test_a_name_that_nobody_has_is_doubted(three: Cluster) -> None:
    assert "no anm-0000 was seen here lately, is it mistyped? Seen were: " in remove(three, "anm-0000")


def test_a_token_s_command_leads_to_the_coordinator(three: Cluster) -> None:
    words = [sys.executable, "-m", "distllm.server", "token", "--state", str(three.state_dir)]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert f" --join {LOOPBACK}:{three.port} --token" in shown


async def streams_outlive_a_removal(cluster: Cluster, plain_url: str) -> None:
    expected = await run_streams(plain_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    load = Load(cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    await load.until_part(0.2)
    victim = cluster.stages[-1]
    await asyncio.to_thread(remove, cluster, str(cluster.address_of(victim).peer_id))
    found = await load.finish()
    assert damage_of(expected, found) == UNHARMED, [stream.error for stream in found]
    assert victim not in cluster.stages
    peer = cluster.peers[victim]
    assert await asyncio.to_thread(peer.process.wait, TIMEOUT_S) == 1
    assert "this peer left the cluster: it was put out" in peer.log.read_text()
    again = cluster.start_peer(victim)
    assert await asyncio.to_thread(again.process.wait, TIMEOUT_S) == 1
    assert "was put out of the cluster: join it with a new token" in again.log.read_text()


def test_streams_go_on_without_a_stage_that_is_put_out(servers: Servers, three: Cluster) -> None:
    asyncio.run(streams_outlive_a_removal(three, servers.plain_url))
