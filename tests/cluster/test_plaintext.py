"""Without encryption, on this machine: the same streams, and callers that are known all the same."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.cluster import LOOPBACK, ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import WatchedStream
from distllm.engine.pipeline.peer.joining import join
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.security.join_token import JoinToken
from distllm.engine.pipeline.transport.client import Address, Http2Client
from tests.cluster.conftest import PlainStreams, amid_streams, asks, distllm

TIMEOUT_S = 10.0
NUM_STREAMS, NUM_TOKENS = 8, 160


@pytest.fixture(scope="module")
def plaintext(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two stages and a spare."""
    directory = tmp_path_factory.mktemp("plaintext")
    with running_cluster(directory, arguments=ONE_NUMERICS, network="encryption: false") as cluster:
        cluster.wait_until(lambda: "peers may join" in cluster.log(), "the coordinator listens")
        for name in ("ann", "bob", "cid"):
            cluster.start_peer(name)
        cluster.wait_until_serving(2, num_spares=1)
        yield cluster


async def post(address: Address, identity: PeerIdentity | None, path: str) -> tuple[int, str]:
    client = Http2Client(address, address.host, identity, None, is_encrypted=False)
    try:
        status, answer = await client.post(path, b"", TIMEOUT_S)
        return status, answer.decode()
    finally:
        await client.close()


def test_tokens_are_made_for_plaintext(plaintext: Cluster) -> None:
    token = plaintext.make_token()
    assert token.startswith("dl1p_")
    assert not JoinToken.parse(token).is_encrypted


async def test_strangers_and_other_clusters_are_refused_by_coordinator_and_peers(
    plaintext: Cluster, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    own = await join(plaintext.coordinator_address, plaintext.make_token(), "own", [LOOPBACK], tmp_path / "own")
    other = ClusterAuthority.open(tmp_path / "other", now).issue_own([], now)
    peer = plaintext.address_of(plaintext.stages[0])
    for address, path in ((plaintext.coordinator_address, "/v1/report"), (peer, "/v1/step")):
        assert await post(address, None, path) == (
            403,
            "this needs a certificate of the cluster: join it with a token",
        )
        assert await post(address, other, path) == (403, "the ticket is none of this cluster for this machine")
        status, _ = await post(address, own, path)
        assert status == 400, "it is known, and what it says is no frame"
    assert "a caller was refused: the ticket is none of this cluster" in plaintext.log()


def refused_peer(directory: Path, token: str, *arguments: str) -> str:
    """What `distllm peer` says, which ends at once."""
    ended = distllm("peer", "--token", token, "--state", str(directory / "refused"), *arguments)
    assert ended.returncode != 0
    return ended.stderr


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--join", "192.0.2.1:5555"], "--join 192.0.2.1: "),
        (["--join", f"{LOOPBACK}:5555", "--host", "192.0.2.1"], "--host 192.0.2.1: "),
        (["--join", f"{LOOPBACK}:5555", "--listen", "0.0.0.0:7000"], "--listen 0.0.0.0: "),
    ],
)
def test_a_peer_speaks_no_plaintext_to_other_machines(tmp_path: Path, arguments: list[str], flag: str) -> None:
    token = JoinToken.make("ab" * 32, datetime.now(UTC) + timedelta(hours=1), is_encrypted=False).text
    words = refused_peer(tmp_path, token, *arguments)
    assert flag in words
    assert "insist with --allow-plaintext" in words


@pytest.fixture(scope="module")
def expected(plain_streams: PlainStreams) -> list[WatchedStream]:
    return plain_streams(NUM_STREAMS, NUM_TOKENS)


async def test_streams_survive_the_loss_of_a_stage(plaintext: Cluster, expected: list[WatchedStream]) -> None:
    async with amid_streams(plaintext, asks(NUM_STREAMS, NUM_TOKENS), expected):
        plaintext.peers[plaintext.stages[-1]].process.kill()
