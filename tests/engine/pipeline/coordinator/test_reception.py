"""Who may join and what the coordinator says to what it cannot take, while it goes on taking the rest."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from distllm.engine.pipeline.coordinator.events import EventLog
from distllm.engine.pipeline.coordinator.listeners import Listeners
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.reception import Reception
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import (
    BULK_PATH,
    CONTROL,
    LINK_PATH,
    STEP,
    Beat,
    Dismiss,
    EdgeDown,
    Endpoint,
    Hello,
    Loaded,
    Received,
    Removed,
    Result,
    StageLost,
    ToCoordinator,
    Welcome,
)
from distllm.engine.pipeline.patience import Patience
from distllm.engine.pipeline.peer.joining import JoinAnswer, JoinRequest
from distllm.engine.pipeline.peer.version import PROTOCOL_VERSION
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import PendingIdentity
from distllm.engine.pipeline.security.peer_id import PeerId, peer_id_of
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.engine.pipeline.security.token_store import TokenStore
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.pipeline.transport.app import PeerApp, Reply
from distllm.engine.pipeline.wire.frame import encode_frame
from distllm.engine.pipeline.wire.stream_decoder import StreamDecoder
from tests.engine.pipeline.coordinator.peers import SAMPLE, WHOLE
from tests.engine.pipeline.waiting import TIMEOUT_S
from tests.scheduler.slot_executor import executor_info


def ignore(*_: object) -> None:
    """What nothing is done with."""


PEER = PeerId("peer-1")
MAX_BYTES = 1 << 20
WELCOME = Welcome(version=PROTOCOL_VERSION, beat_s=0.25, patience=Patience(timeout_s=7.0, retry_attempts=1))


class Coordinator:
    """A reception with a desk for each path."""

    def __init__(
        self,
        authority: ClusterAuthority,
        tokens: TokenStore,
        state_dir: Path,
        why_refused: Callable[[Hello], str | None] = lambda _: None,
    ) -> None:
        self.members = Members()
        self.results: list[tuple[PeerId, Result]] = []
        self.events = EventLog()

        def note(peer_id: PeerId, result: Result) -> None:
            self.results.append((peer_id, result))

        self.edges = {(PEER, "peer-2", 1)}
        self.measured: list[object] = []
        self.received: list[tuple[PeerId, Received]] = []
        self.removed = RemovedPeers(state_dir)
        settings = ClusterSettings(
            host="127.0.0.1",
            port=0,
            state_dir=str(state_dir),
            max_peers=2,
            patience=WELCOME.patience,
            max_message_bytes=MAX_BYTES,
        )
        reception = Reception(
            authority,
            tokens,
            self.members,
            settings,
            Listeners(
                result=note,
                loading=ignore,
                measured=lambda _, message: self.measured.append(message),
                received=lambda *received: self.received.append(received),
                has_edge=lambda *edge: edge in self.edges,
            ),
            self.events,
            self.removed,
            why_refused,
        )
        self.app: PeerApp = reception.app({})

    async def join(self, request: JoinRequest) -> Reply:
        return await self.app.open_posts["/v1/join"](None, msgspec.msgpack.encode(request))

    async def report(self, caller: PeerId, message: ToCoordinator) -> Reply:
        return await self.app.posts["/v1/report"](caller, b"".join(encode_frame(CONTROL, message)))


@pytest.fixture
def tokens(authority: ClusterAuthority, tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "cluster", authority.fingerprint)


@pytest.fixture
async def coordinator(authority: ClusterAuthority, tokens: TokenStore, tmp_path: Path) -> Coordinator:
    return Coordinator(authority, tokens, tmp_path / "cluster")


def request(token: str, name: str = "gpu-1", csr_pem: bytes | None = None) -> JoinRequest:
    pem = PendingIdentity.make().csr_pem if csr_pem is None else csr_pem
    return JoinRequest(token=token, csr_pem=pem, name=name, hosts=["127.0.0.1"])


def hello(version: int = PROTOCOL_VERSION, boot: str = "boot-1") -> Hello:
    endpoint = Endpoint(peer_id=PEER, host="127.0.0.1", port=1)
    return Hello(version=version, boot=boot, endpoint=endpoint, free_bytes=1)


async def test_a_token_lets_one_machine_in_once(coordinator: Coordinator, tokens: TokenStore) -> None:
    token = tokens.make(timedelta(hours=1), datetime.now(UTC))
    reply = await coordinator.join(request(token))
    assert reply.status == 200
    answer = msgspec.msgpack.decode(reply.body, type=JoinAnswer)
    assert peer_id_of(answer.certificate_pem).startswith("gpu-1-")
    again = await coordinator.join(request(token))
    assert (again.status, b"used" in again.body) == (403, True)


async def test_a_request_that_cannot_be_signed_costs_no_token(coordinator: Coordinator, tokens: TokenStore) -> None:
    token = tokens.make(timedelta(hours=1), datetime.now(UTC))
    assert (await coordinator.join(request(token, csr_pem=b"rubbish"))).status == 400
    assert (await coordinator.join(request(token, name="-bad name-"))).status == 400
    assert (await coordinator.app.open_posts["/v1/join"](None, b"\xc1")).status == 400
    assert (await coordinator.join(request(token))).status == 200


async def test_a_renewal_is_for_the_caller_whatever_it_says(coordinator: Coordinator) -> None:
    body = msgspec.msgpack.encode(request("", name="somebody-else"))
    reply = await coordinator.app.posts["/v1/renew"](PEER, body)
    assert peer_id_of(msgspec.msgpack.decode(reply.body, type=JoinAnswer).certificate_pem) == PEER


async def test_a_peer_counts_once_it_has_a_link_and_said_hello(coordinator: Coordinator) -> None:
    outbound = coordinator.app.streams[LINK_PATH](PEER)
    assert coordinator.members.connected() == []
    (frame,) = StreamDecoder(MAX_BYTES).feed(outbound.get_nowait() or b"")
    assert frame.header(msgspec.msgpack.Decoder(Welcome)) == WELCOME
    assert (await coordinator.report(PEER, hello())).status == 200
    assert [member.peer_id for member in coordinator.members.connected()] == [PEER]
    coordinator.app.on_stream_end(PEER, outbound)
    assert coordinator.members.connected() == []


async def test_a_new_link_takes_the_place_of_an_old_one(coordinator: Coordinator) -> None:
    old = coordinator.app.streams[LINK_PATH](PEER)
    new = coordinator.app.streams[LINK_PATH](PEER)
    await coordinator.report(PEER, hello())
    assert (old.get_nowait(), old.get_nowait()) != (None, None)
    assert old.empty()
    coordinator.app.on_stream_end(PEER, old)
    assert coordinator.members[PEER].outbound is new


async def test_a_link_and_the_stream_beside_it_end_together(coordinator: Coordinator) -> None:
    for ended in (0, 1):
        streams = [coordinator.app.streams[path](PEER) for path in (LINK_PATH, BULK_PATH)]
        await coordinator.report(PEER, hello())
        assert coordinator.members[PEER].is_connected
        coordinator.app.on_stream_end(PEER, streams[ended])
        assert not coordinator.members[PEER].is_connected
        remaining = streams[1 - ended]
        while not remaining.empty():
            last = remaining.get_nowait()
        assert last is None


async def test_a_way_that_is_closed_is_nobody_s_fault_and_a_refusal_is_the_refuser_s(
    coordinator: Coordinator,
) -> None:
    coordinator.app.streams[LINK_PATH](PEER)
    await coordinator.report(PEER, hello())
    other = coordinator.members[PeerId("peer-2")]
    down = EdgeDown(epoch=1, successor=other.peer_id, reason="refused")
    await coordinator.report(PEER, down)
    assert (other.trouble, coordinator.measured) == (None, [down])
    await coordinator.report(PEER, msgspec.structs.replace(down, is_refusal=True))
    assert (other.trouble, coordinator.measured) == ("refused", [down])
    received = Received(epoch=1, number=2, status=Status.ACCEPTED)
    await coordinator.report(PEER, received)
    assert coordinator.received == [(PEER, received)]


@pytest.mark.parametrize("is_refusal", [False, True])
@pytest.mark.parametrize(
    ("sender", "successor", "epoch"), [(PEER, "peer-3", 1), ("peer-2", PEER, 1), (PEER, "peer-2", 0)]
)
async def test_nobody_is_blamed_by_one_who_does_not_send_to_it(
    coordinator: Coordinator, sender: str, successor: str, epoch: int, is_refusal: bool
) -> None:
    coordinator.app.streams[LINK_PATH](PeerId(sender))
    await coordinator.report(PeerId(sender), hello())
    down = EdgeDown(epoch=epoch, successor=successor, reason="refused", is_refusal=is_refusal)
    assert (await coordinator.report(PeerId(sender), down)).status == Status.STALE
    assert coordinator.members[PeerId(successor)].trouble is None
    assert not coordinator.measured
    assert "failed" not in {event.kind for event in coordinator.events.recent()}


async def test_other_versions_and_one_peer_too_many_are_refused(coordinator: Coordinator) -> None:
    for name in ("peer-1", "peer-2", "peer-3"):
        coordinator.app.streams[LINK_PATH](PeerId(name))
    reply = await coordinator.report(PEER, hello(version=99))
    assert (reply.status, b"99" in reply.body) == (400, True)
    assert (await coordinator.report(PEER, hello())).status == 200
    assert (await coordinator.report(PeerId("peer-2"), hello())).status == 200
    reply = await coordinator.report(PeerId("peer-3"), hello())
    assert (reply.status, b"max_workers" in reply.body) == (403, True)


async def test_a_peer_that_is_of_no_use_is_told_why(
    authority: ClusterAuthority, tokens: TokenStore, tmp_path: Path
) -> None:
    sample = replace(SAMPLE, stored_quantization="gptq-w4")
    coordinator = Coordinator(authority, tokens, tmp_path / "cluster", sample.why_refused)
    coordinator.app.streams[LINK_PATH](PEER)
    wishing = msgspec.structs.replace(hello(), quantization="int8")
    reply = await coordinator.report(PEER, wishing)
    assert (reply.status, coordinator.members.connected()) == (403, [])
    assert reply.body.decode() == (
        "m is stored quantized (gptq-w4) and cannot be quantized again: start this peer without --quantization int8"
    )
    assert (await coordinator.report(PEER, hello())).status == 200


async def test_what_is_no_report_is_refused_in_the_words_of_the_log_and_changes_nothing(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    async def why_refused(body: bytes) -> str:
        caplog.clear()
        reply = await coordinator.app.posts["/v1/report"](PEER, body)
        reason = reply.body.decode()
        assert (reply.status, caplog.messages) == (400, [f"{PEER} sent what is no report: {reason}"])
        return reason

    coordinator.app.streams[LINK_PATH](PEER)
    await coordinator.report(PEER, hello())
    beat = b"".join(encode_frame(CONTROL, Beat(boot="boot-1", busy_s=0.5)))
    for position in range(len(beat)):
        damaged = bytearray(beat)
        damaged[position] ^= 0x10
        assert await why_refused(bytes(damaged))
        assert "ended after" in await why_refused(beat[:position])
    step = b"".join(encode_frame(STEP, Beat(boot="boot-1", busy_s=0.5)))
    assert await why_refused(step) == f"a frame of kind {STEP} is no report"
    assert coordinator.members[PEER].busy_s == 0.0
    assert (await coordinator.app.posts["/v1/report"](PEER, beat)).status == 200
    assert coordinator.members[PEER].busy_s == 0.5


async def test_a_peer_that_is_put_out_is_dismissed_and_all_others_are_told(coordinator: Coordinator) -> None:
    other = PeerId("peer-2")
    links = {peer_id: coordinator.app.streams[LINK_PATH](peer_id) for peer_id in (PEER, other)}
    for peer_id, link in links.items():
        await coordinator.report(peer_id, hello())
        link.get_nowait()  # the welcome
    assert not coordinator.app.is_removed(other)
    coordinator.removed.add(PEER, datetime.now(UTC))
    assert not coordinator.app.is_removed(other), "which notices on the way"
    assert coordinator.app.is_removed(PEER)
    assert [member.peer_id for member in coordinator.members.connected()] == [other]
    decode = msgspec.msgpack.Decoder(Dismiss | Removed)
    (told,) = StreamDecoder(MAX_BYTES).feed(links[PEER].get_nowait() or b"")
    assert isinstance(told.header(decode), Dismiss)
    assert links[PEER].get_nowait() is None
    (told,) = StreamDecoder(MAX_BYTES).feed(links[other].get_nowait() or b"")
    assert told.header(decode) == Removed(peer_ids=frozenset({PEER}))
    assert links[other].empty()
    again = coordinator.app.streams[LINK_PATH](other)
    (told,) = StreamDecoder(MAX_BYTES).feed(again.get_nowait() or b"")
    assert told.header(msgspec.msgpack.Decoder(Welcome)).removed == {PEER}


async def test_a_stage_that_is_lost_may_be_asked_for_again(coordinator: Coordinator) -> None:
    coordinator.app.streams[LINK_PATH](PEER)
    await coordinator.report(PEER, hello())
    member = coordinator.members[PEER]
    member.have_loaded(WHOLE)
    await coordinator.report(PEER, Loaded(config=WHOLE, info=executor_info(8, 16, 64)))
    assert WHOLE in member.loaded
    assert (await coordinator.report(PEER, StageLost(config=WHOLE, reason="rank 1 ended"))).status == 200
    assert not member.loaded
    assert not member.asked
    event = coordinator.events.recent()[0]
    assert (event.kind, event.text, event.peer_id) == ("failed", "has lost [0, 8): rank 1 ended", PEER)


async def test_reports_wake_who_waits_for_a_change(coordinator: Coordinator) -> None:
    waiting = asyncio.create_task(coordinator.members.wait_for_change(3600.0))
    await asyncio.sleep(0)
    coordinator.app.streams[LINK_PATH](PEER)
    await coordinator.report(PEER, hello())
    await asyncio.wait_for(waiting, TIMEOUT_S)
