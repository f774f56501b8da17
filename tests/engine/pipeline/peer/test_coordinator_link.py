"""A peer comes back to its coordinator whichever of its connections breaks, and beats once it is welcome."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import cast

import msgspec
import pytest

from distllm.engine.interface import StepInput
from distllm.engine.pipeline.messages import (
    BULK_PATH,
    CONTROL,
    LINK_PATH,
    STEP,
    Beat,
    Dismiss,
    Endpoint,
    Fenced,
    Hello,
    StepHeader,
    ToCoordinator,
    ToPeer,
    Welcome,
)
from distllm.engine.pipeline.peer import coordinator_link as module
from distllm.engine.pipeline.peer.coordinator_link import CoordinatorLink
from distllm.engine.pipeline.security.join_token import JoinRefused
from distllm.engine.pipeline.transport.client import Http2Client, Unreachable
from distllm.engine.pipeline.wire.frame import Frame, decode_frame, encode_frame
from tests.engine.pipeline.waiting import until

WELCOME = Welcome(version=1, beat_s=0.01)
_decode = msgspec.msgpack.Decoder(ToCoordinator)


class Coordinator:
    """Stands for all clients that a peer has of it."""

    def __init__(self) -> None:
        self.streams: dict[str, list[asyncio.Queue[bytes | None]]] = {LINK_PATH: [], BULK_PATH: []}
        self.reports: list[ToCoordinator] = []
        self.num_connections = self.num_closed = 0
        self.hello_status = self.report_status = 200
        self.is_reachable = True

    async def connect(self) -> Http2Client:
        self.num_connections += 1
        if not self.is_reachable:
            raise Unreachable("nobody is there")
        return cast(Http2Client, self)

    async def stream(self, path: str) -> AsyncIterator[memoryview]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.streams[path].append(queue)
        while (piece := await queue.get()) is not None:
            yield memoryview(piece)

    async def post(self, _: str, body: bytes, __: float) -> tuple[int, bytes]:
        self.reports.append(decode_frame(body, len(body)).header(_decode))
        match self.reports[-1]:
            case Hello():
                return self.hello_status, b"too many"
            case Beat():
                return 200, b""
        return self.report_status, b"a result cannot be"

    async def close(self) -> None:
        self.num_closed += 1

    @property
    def num_hellos(self) -> int:
        return sum(isinstance(report, Hello) for report in self.reports)

    @property
    def num_beats(self) -> int:
        return sum(isinstance(report, Beat) for report in self.reports)

    async def welcome(self, number: int = 1) -> None:
        """The link of a number, counted from 1, and wait for the other stream and a beat."""
        await until(lambda: len(self.streams[LINK_PATH]) == number)
        num_beats = self.num_beats
        self.streams[LINK_PATH][-1].put_nowait(b"".join(encode_frame(CONTROL, WELCOME)))
        await until(lambda: len(self.streams[BULK_PATH]) == number and self.num_beats > num_beats)


class Peer:
    """What a link hands to its peer."""

    def __init__(self) -> None:
        self.coordinator = Coordinator()
        self.steps: list[Frame] = []
        self.messages: list[ToPeer] = []
        self.reasons: list[str] = []
        self.expiry: str | None = None
        self.num_asked = 0
        endpoint = Endpoint(peer_id="a-1", host="127.0.0.1", port=1)
        self.link = CoordinatorLink(
            self.coordinator.connect,
            self.explain,
            1 << 20,
            self.steps.append,
            self.messages.append,
            lambda: Hello(version=1, boot="1", endpoint=endpoint, free_bytes=1),
            lambda round_trip_s: Beat(boot="1", busy_s=0.0, round_trip_s=round_trip_s),
            self.reasons.append,
        )

    async def explain(self) -> str | None:
        self.num_asked += 1
        if self.expiry is not None:
            raise JoinRefused(self.expiry)
        return "the coordinator speaks plaintext alone"


@pytest.fixture
async def peer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    monkeypatch.setattr(module, "_RECONNECT_S", (0.01, 0.01))
    peer = Peer()
    task = asyncio.create_task(peer.link.run())
    yield peer
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def step() -> bytes:
    raw = msgspec.Raw(msgspec.msgpack.encode(StepInput(0, [])))
    header = StepHeader(epoch=1, number=0, first_stage=0, last_stage=1, is_rebuild=False, step=raw)
    return b"".join(encode_frame(STEP, header))


async def test_it_says_hello_once_it_is_welcome_and_then_beats(peer: Peer) -> None:
    await until(lambda: peer.coordinator.streams[LINK_PATH])
    assert (peer.coordinator.streams[BULK_PATH], peer.coordinator.reports) == ([], [])
    await peer.coordinator.welcome()
    await until(lambda: peer.coordinator.num_beats >= 3)
    assert peer.coordinator.num_hellos == 1
    first, second = [report for report in peer.coordinator.reports if isinstance(report, Beat)][:2]
    assert first.round_trip_s is None
    assert second.round_trip_s is not None


async def test_steps_come_down_both_streams_and_messages_down_the_link(peer: Peer) -> None:
    await peer.coordinator.welcome()
    dismissal = Dismiss(reason="enough")
    peer.coordinator.streams[LINK_PATH][0].put_nowait(step() + b"".join(encode_frame(CONTROL, dismissal)))
    peer.coordinator.streams[BULK_PATH][0].put_nowait(step())
    await until(lambda: len(peer.steps) == 2)
    assert peer.messages == [WELCOME, dismissal]


@pytest.mark.parametrize("path", [LINK_PATH, BULK_PATH])
@pytest.mark.parametrize("end", [None, b"no frame at all"], ids=["ended", "damaged"])
async def test_it_comes_back_with_all_connections_when_one_breaks(peer: Peer, path: str, end: bytes | None) -> None:
    await peer.coordinator.welcome()
    peer.coordinator.streams[path][0].put_nowait(end)
    await peer.coordinator.welcome(2)
    assert peer.coordinator.num_hellos == 2
    assert (peer.coordinator.num_connections, peer.coordinator.num_closed) == (6, 3)


async def test_who_is_not_wanted_is_told_why(peer: Peer) -> None:
    peer.coordinator.hello_status = 403
    await peer.coordinator.welcome()
    assert peer.reasons == ["too many"]


async def test_nothing_is_told_while_there_is_no_connection(peer: Peer) -> None:
    await Peer().link.tell(Fenced(epoch=1))
    await peer.coordinator.welcome()
    await peer.link.tell(Fenced(epoch=2), lambda: False)
    await peer.link.tell(Fenced(epoch=3))
    assert [report for report in peer.coordinator.reports if isinstance(report, Fenced)] == [Fenced(epoch=3)]


async def test_a_report_that_is_refused_is_logged(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    await peer.coordinator.welcome()
    peer.coordinator.report_status = 400
    await peer.link.tell(Fenced(epoch=1))
    assert "the coordinator refused a report: a result cannot be" in caplog.text


async def test_a_coordinator_that_cannot_be_reached_is_asked_why_and_tried_again(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await peer.coordinator.welcome()
    peer.coordinator.is_reachable = False
    peer.coordinator.streams[LINK_PATH][0].put_nowait(None)
    await until(lambda: peer.num_asked > 1)
    assert "the coordinator speaks plaintext alone; trying again" in caplog.text
    peer.coordinator.is_reachable = True
    await peer.coordinator.welcome(2)


async def test_a_peer_whose_certificate_has_expired_leaves(peer: Peer) -> None:
    await peer.coordinator.welcome()
    peer.expiry = "its certificate expired"
    peer.coordinator.is_reachable = False
    peer.coordinator.streams[LINK_PATH][0].put_nowait(None)
    await until(lambda: peer.reasons)
    assert peer.reasons == ["its certificate expired"]
