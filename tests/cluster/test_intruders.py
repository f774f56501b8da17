"""What the coordinator and its peers refuse, with which words; and that all of it leaves the cluster serving."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.client import Address, Http2Client
from distllm.engine.pipeline.wire.frame import encode_frame
from tests.cluster.conftest import MODEL, asks, distllm, have
from tests.engine.pipeline.wire.frames import announced

NUM_FLIPS = 200
VERSION_OFFSET = 2
"""Of a frame's version, whatever that is."""
SOME_BEAT = Beat(boot="x", busy_s=0.0)
NO_KIND = 200
TOO_MUCH = announced([["uint8", [65 << 20]]])
LIFETIME = timedelta(hours=1)
TIMEOUT_S = 10.0


@pytest.fixture(autouse=True)
def it_goes_on_serving(cluster: Cluster) -> Iterator[None]:
    """Every test leaves the stages in their epoch, and answers."""
    have(cluster, 2)
    before = cluster.stages, cluster.num_epochs, cluster.num_losses
    yield
    (stream,) = asyncio.run(run_streams(cluster.base_url, asks(1, 8), MODEL))
    assert (stream.error, len(stream.tokens)) == (None, 8)
    assert (cluster.stages, cluster.num_epochs, cluster.num_losses) == before


@pytest.fixture(scope="module")
def stranger(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> PeerIdentity:
    """A machine that has joined, and has no part in the pipeline."""
    directory = tmp_path_factory.mktemp("stranger")
    return asyncio.run(join(cluster.coordinator_address, cluster.make_token(), "stranger", [LOOPBACK], directory))


@asynccontextmanager
async def connected(address: Address, identity: PeerIdentity) -> AsyncIterator[Http2Client]:
    client = await Http2Client.open(address, identity)
    try:
        yield client
    finally:
        await client.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the coordinator or a stage takes frames, one of which is `frame`, and where it logs."""

    address: Address
    path: str
    wants: str
    frame: bytes
    log: Path


def places(cluster: Cluster) -> list[Place]:
    """Of the coordinator and of all stages."""
    beat, step = encoded(CONTROL, SOME_BEAT), step_frame(epoch=1, number=1)
    reports = Place(cluster.coordinator_address, "/v1/report", "report", beat, cluster.log_file)
    steps = [
        Place(cluster.address_of(stage), "/v1/step", "step", step, cluster.peers[stage].log)
        for stage in cluster.stages
    ]
    return [reports, *steps]


def encoded(kind: int, message: msgspec.Struct) -> bytes:
    return b"".join(encode_frame(kind, message))


def of_another_version(frame: bytes) -> bytes:
    changed = bytearray(frame)
    changed[VERSION_OFFSET] += 1
    return bytes(changed)


def with_flipped_bits(frame: bytes) -> list[bytes]:
    """One at a time, of all or of many."""
    flipped = []
    for number in random.Random(0).sample(range(8 * len(frame)), min(NUM_FLIPS, 8 * len(frame))):
        damaged = bytearray(frame)
        damaged[number // 8] ^= 1 << number % 8
        flipped.append(bytes(damaged))
    return flipped


async def refused_join(cluster: Cluster, token: str, directory: Path) -> str:
    with pytest.raises(JoinRefused) as caught:
        await join(cluster.coordinator_address, token, "intruder", [LOOPBACK], directory)
    return str(caught.value)


async def test_a_token_that_was_not_made_here_lets_nobody_in(cluster: Cluster, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    own = ClusterAuthority.open(cluster.state_dir, now).fingerprint
    forged = JoinToken.make(own, now + LIFETIME).text
    reason = "has no record of this join token"
    assert reason in await refused_join(cluster, forged, tmp_path / "id")
    assert re.search(f"a machine was refused: .*{reason}", cluster.log())


async def test_a_token_of_another_cluster_is_not_even_sent(cluster: Cluster, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    other = ClusterAuthority.open(tmp_path / "other", now).fingerprint
    token = JoinToken.make(other, now + LIFETIME).text
    assert "is of another cluster" in await refused_join(cluster, token, tmp_path / "id")


def test_a_token_lets_one_machine_join_and_the_next_is_told_so_in_one_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    token = cluster.make_token()
    asyncio.run(join(cluster.coordinator_address, token, "first", [LOOPBACK], tmp_path / "first"))
    place = ("--join", f"{LOOPBACK}:{cluster.port}", "--state", str(tmp_path / "second"))
    ended = distllm("peer", *place, "--token", token)
    assert ended.returncode == 1
    assert "this join token was used at" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "a machine was refused: this join token was used at" in cluster.log()


async def test_a_peer_of_another_protocol_version_is_told_both_versions(
    cluster: Cluster, stranger: PeerIdentity
) -> None:
    endpoint = Endpoint(peer_id=stranger.peer_id, host=LOOPBACK, port=1)
    hello = Hello(version=PROTOCOL_VERSION + 1, boot="x", endpoint=endpoint, free_bytes=0)
    async with connected(cluster.coordinator_address, stranger) as client:
        status, reason = await client.post("/v1/report", encoded(CONTROL, hello), TIMEOUT_S)
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
    ended = distllm("peer", "--join", f"{LOOPBACK}:{cluster.port}", "--state", str(tmp_path / "late"))
    assert ended.returncode == 1
    assert "this peer left the cluster: its certificate expired at" in ended.stderr
    assert "late-0001 was refused: its certificate has expired" in cluster.log()


async def test_a_message_that_is_too_large_is_refused_by_all(cluster: Cluster, stranger: PeerIdentity) -> None:
    body = bytes((64 << 20) + 1)
    for place in places(cluster):
        async with connected(place.address, stranger) as client:
            status, reason = await client.post(place.path, body, 6 * TIMEOUT_S)
        limit = "the message is larger than network.max_message_size_mb allows: 64 MiB"
        assert (status, reason.decode()) == (413, limit)
        assert f"{stranger.peer_id} was refused a message of more than 64 MiB" in place.log.read_text()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda frame: [b"", frame[:1], frame[:40], frame[:-1]], "ended after", id="truncated"),
        pytest.param(lambda frame: [frame + b"\0", frame * 2], "after the end of a frame", id="too long"),
        pytest.param(lambda frame: [of_another_version(frame)], "protocol version", id="another wire version"),
        pytest.param(lambda frame: [bytes(4096), b"{" * 64], "is no frame of distllm", id="no frame"),
        pytest.param(lambda frame: [encoded(NO_KIND, SOME_BEAT)], f"kind {NO_KIND} is no", id="another kind"),
        pytest.param(lambda frame: [TOO_MUCH], "raise network.max_message_size_mb", id="announcing too much"),
        pytest.param(lambda frame: with_flipped_bits(frame), "", id="any bit flipped"),
    ],
)
async def test_what_is_no_whole_frame_is_refused_by_all_who_log_what_they_tell_the_sender(
    cluster: Cluster, stranger: PeerIdentity, damage: Callable[[bytes], list[bytes]], words: str
) -> None:
    for place in places(cluster):
        async with connected(place.address, stranger) as client:
            answers = [await client.post(place.path, body, TIMEOUT_S) for body in damage(place.frame)]
        log = place.log.read_text()
        for number, (status, reason) in enumerate(answers):
            assert status == 400, f"{place.path} {number}: {status}"
            assert reason
            assert words in reason.decode()
            assert f"{stranger.peer_id} sent what is no {place.wants}: {reason.decode()}\n" in log


async def test_a_whole_report_is_taken(cluster: Cluster, stranger: PeerIdentity) -> None:
    """So that what the frames above are refused for is their damage."""
    async with connected(cluster.coordinator_address, stranger) as client:
        assert (await client.post("/v1/report", encoded(CONTROL, SOME_BEAT), TIMEOUT_S))[0] == 200


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
