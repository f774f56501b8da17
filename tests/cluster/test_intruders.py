"""What the coordinator and its peers refuse, with which words; and that all of it leaves the cluster serving."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.cluster import LOOPBACK, Cluster
from benchmarks.watched_streams import run_streams
from distllm.engine.interface import StepInput
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import CONTROL, STEP, Beat, Endpoint, Hello, StepHeader
from distllm.engine.pipeline.peer.joining import join
from distllm.engine.pipeline.peer.version import PROTOCOL_VERSION
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import PeerIdentity, PendingIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.join_token import JoinRefused, JoinToken
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.transport.client import Address, Http2Client
from distllm.engine.pipeline.wire.frame import encode_frame
from tests.cluster.conftest import MODEL, asks, have

NUM_FLIPS = 200
VERSION_OFFSET = 2
"""Of a frame's version, whatever that is."""
LIFETIME = timedelta(hours=1)
TIMEOUT_S = 10.0


@pytest.fixture(autouse=True)
def it_goes_on_serving(cluster: Cluster) -> Iterator[None]:
    """Every test leaves the stages as they are, but for a better plan, and answers."""
    have(cluster, 2)
    num_losses = cluster.num_losses
    yield
    (stream,) = asyncio.run(run_streams(cluster.base_url, asks(1, 8), MODEL))
    assert (stream.error, len(stream.tokens)) == (None, 8)
    assert cluster.num_losses == num_losses


@pytest.fixture(scope="module")
def stranger(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> PeerIdentity:
    """A machine that has joined, and has no part in the pipeline."""
    directory = tmp_path_factory.mktemp("stranger")
    return asyncio.run(join(coordinator(cluster), cluster.make_token(), "stranger", [LOOPBACK], directory))


def coordinator(cluster: Cluster) -> Address:
    return Address(COORDINATOR, LOOPBACK, cluster.port)


@asynccontextmanager
async def connected(address: Address, identity: PeerIdentity) -> AsyncIterator[Http2Client]:
    client = await Http2Client.open(address, identity)
    try:
        yield client
    finally:
        await client.close()


def places(cluster: Cluster) -> list[tuple[Address, str]]:
    """Where the coordinator and the stages take frames."""
    stages = [(cluster.address_of(stage), "/v1/step") for stage in cluster.stages]
    return [(coordinator(cluster), "/v1/report"), *stages]


def control(message: msgspec.Struct) -> bytes:
    return b"".join(encode_frame(CONTROL, message))


async def refused_join(cluster: Cluster, token: str, directory: Path) -> str:
    with pytest.raises(JoinRefused) as caught:
        await join(coordinator(cluster), token, "intruder", [LOOPBACK], directory)
    return str(caught.value)


async def test_a_token_that_was_not_made_here_lets_nobody_in(cluster: Cluster, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    own = ClusterAuthority.open(cluster.state_dir, now).fingerprint
    forged = JoinToken.make(own, now + LIFETIME).text
    assert "has no record of this join token" in await refused_join(cluster, forged, tmp_path / "id")


async def test_a_token_of_another_cluster_is_not_even_sent(cluster: Cluster, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    other = ClusterAuthority.open(tmp_path / "other", now).fingerprint
    token = JoinToken.make(other, now + LIFETIME).text
    assert "is of another cluster" in await refused_join(cluster, token, tmp_path / "id")


def test_a_token_lets_one_machine_join_and_the_next_is_told_so_in_one_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    token = cluster.make_token()
    asyncio.run(join(coordinator(cluster), token, "first", [LOOPBACK], tmp_path / "first"))
    words = ["peer", "--join", f"{LOOPBACK}:{cluster.port}", "--token", token, "--state", str(tmp_path / "second")]
    ended = subprocess.run(
        [sys.executable, "-m", "distllm.server", *words], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert "this join token was used at" in ended.stderr
    assert ended.stderr.count("\n") == 1


async def test_a_peer_of_another_protocol_version_is_told_both_versions(
    cluster: Cluster, stranger: PeerIdentity
) -> None:
    endpoint = Endpoint(peer_id=stranger.peer_id, host=LOOPBACK, port=1)
    hello = Hello(version=PROTOCOL_VERSION + 1, boot="x", endpoint=endpoint, free_bytes=0)
    async with connected(coordinator(cluster), stranger) as client:
        status, reason = await client.post("/v1/report", control(hello), TIMEOUT_S)
    assert status == 400
    said = f"the coordinator speaks version {PROTOCOL_VERSION} of the protocol, this peer {PROTOCOL_VERSION + 1}"
    assert reason.decode() == said
    assert f"{stranger.peer_id} was refused: {said}" in cluster.log()


def test_a_peer_whose_certificate_has_expired_is_told_so_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    then = datetime.now(UTC) - timedelta(hours=2)
    authority = ClusterAuthority.open(cluster.state_dir, datetime.now(UTC))
    pending = PendingIdentity.make()
    certificate_pem = authority.issue(pending.csr_pem, PeerId("late-0001"), [LOOPBACK], then, LIFETIME)
    IdentityFiles.keep(pending.accept(certificate_pem, authority.certificate_pem, then), tmp_path / "late")
    words = ["peer", "--join", f"{LOOPBACK}:{cluster.port}", "--state", str(tmp_path / "late")]
    ended = subprocess.run(
        [sys.executable, "-m", "distllm.server", *words], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert "this peer left the cluster: its certificate expired at" in ended.stderr
    assert "late-0001 was refused: its certificate has expired" in cluster.log()


async def test_a_message_that_is_too_large_is_refused_by_all(cluster: Cluster, stranger: PeerIdentity) -> None:
    body = bytes((64 << 20) + 1)
    for address, path in places(cluster):
        async with connected(address, stranger) as client:
            status, reason = await client.post(path, body, 6 * TIMEOUT_S)
            assert (status, reason.decode()) == (
                413,
                "the message is larger than network.max_message_size_mb allows: 64 MiB",
            )


async def test_a_step_with_any_bit_flipped_is_refused_by_a_stage(cluster: Cluster, stranger: PeerIdentity) -> None:
    frame = step_frame(epoch=1, number=1)
    chosen = random.Random(1).sample(range(8 * len(frame)), min(NUM_FLIPS, 8 * len(frame)))
    async with connected(cluster.address_of(cluster.stages[1]), stranger) as client:
        for number in chosen:
            damaged = bytearray(frame)
            damaged[number // 8] ^= 1 << number % 8
            status, reason = await client.post("/v1/step", bytes(damaged), TIMEOUT_S)
            assert (status, bool(reason)) == (400, True), f"bit {number}: {status} {reason.decode()}"
        for body in (b"", frame[:-1], frame + b"\0", frame * 2):
            status, reason = await client.post("/v1/step", body, TIMEOUT_S)
            assert (status, bool(reason)) == (400, True)


async def test_a_frame_of_another_wire_version_is_told_so_by_all(cluster: Cluster, stranger: PeerIdentity) -> None:
    for address, path in places(cluster):
        frame = bytearray(control(Beat(boot="x", busy_s=0.0)))
        frame[VERSION_OFFSET] += 1
        async with connected(address, stranger) as client:
            status, reason = await client.post(path, bytes(frame), TIMEOUT_S)
            assert (status, b"version" in reason) == (400, True), reason.decode()


async def test_a_frame_with_any_bit_flipped_is_refused_with_a_reason(
    cluster: Cluster, stranger: PeerIdentity
) -> None:
    frame = control(Beat(boot="x", busy_s=0.0))
    chosen = random.Random(0).sample(range(8 * len(frame)), min(NUM_FLIPS, 8 * len(frame)))
    async with connected(coordinator(cluster), stranger) as client:
        for number in chosen:
            damaged = bytearray(frame)
            damaged[number // 8] ^= 1 << number % 8
            status, reason = await client.post("/v1/report", bytes(damaged), TIMEOUT_S)
            assert (status, bool(reason)) == (400, True), f"bit {number}: {status} {reason.decode()}"
        assert (await client.post("/v1/report", frame, TIMEOUT_S))[0] == 200


async def test_what_is_no_frame_at_all_is_refused_with_a_reason(cluster: Cluster, stranger: PeerIdentity) -> None:
    frame = control(Beat(boot="x", busy_s=0.0))
    async with connected(coordinator(cluster), stranger) as client:
        for body in (b"", frame[:-1], frame + b"\0", b"{}", bytes(4096), frame * 2):
            status, reason = await client.post("/v1/report", body, TIMEOUT_S)
            assert (status, bool(reason)) == (400, True)


@pytest.mark.parametrize("stage", [0, 1])
async def test_a_stage_takes_steps_from_its_predecessor_alone(
    cluster: Cluster, stranger: PeerIdentity, stage: int
) -> None:
    async with connected(cluster.address_of(cluster.stages[stage]), stranger) as client:
        status, epoch = await search_epoch(client)
        assert status is Status.REFUSED
        assert await offer_step(client, epoch, number=1) is Status.REFUSED


async def search_epoch(client: Http2Client) -> tuple[Status, int]:
    """The answer to a step of the present epoch, which is later than STALE ones and earlier than those NOT_YET."""
    low, high = 0, 1 << 62
    while low < high:
        epoch = (low + high) // 2
        status = await offer_step(client, epoch)
        if status is Status.STALE:
            low = epoch + 1
        elif status is Status.NOT_YET:
            high = epoch
        else:
            return status, epoch
    raise AssertionError("a stage has no epoch")


async def offer_step(client: Http2Client, epoch: int, number: int = 0) -> Status:
    status, _ = await client.post("/v1/step", step_frame(epoch, number), TIMEOUT_S)
    return Status(status)


def step_frame(epoch: int, number: int) -> bytes:
    step = msgspec.Raw(msgspec.msgpack.encode(StepInput(0, [])))
    header = StepHeader(epoch=epoch, number=number, first_stage=0, last_stage=1, is_rebuild=False, step=step)
    return b"".join(encode_frame(STEP, header, [torch.zeros(0)]))
