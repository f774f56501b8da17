"""A stage computes each step once, in order, and hands it on; what others than its predecessor say, never."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import msgspec
import pytest
import torch
from torch import Tensor

from distllm.engine.interface import BlockId, SequenceChunk, SequenceId, StepInput, StepOutput
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import STEP, EdgeDown, Endpoint, Fence, FenceFailed, Received, StepHeader
from distllm.engine.pipeline.peer.edge import Edge
from distllm.engine.pipeline.peer.stage import Stage, nothing_of
from distllm.engine.pipeline.peer.steps import Epoch, StepRunner
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.client import Http2Client, Unreachable
from distllm.engine.pipeline.wire.activation_codec import CODECS
from distllm.engine.pipeline.wire.codec_names import CodecName
from distllm.engine.pipeline.wire.frame import Frame, decode_frame, encode_frame
from tests.engine.pipeline.coordinator.fake_peers import WHOLE
from tests.engine.pipeline.waiting import until


class FakeStage:
    """Adds one to activations; the last stage yields nothing but an answer."""

    def __init__(self, *, is_last: bool) -> None:
        self.is_last = is_last
        self.computed: list[int] = []
        self.fails = False

    def run(self, step: StepInput, activations: Tensor | None, *, is_rebuild: bool) -> Tensor | StepOutput:
        if self.fails:
            raise MemoryError("no room")
        self.computed.append(step.step_id)
        assert activations is not None
        return nothing_of(step) if self.is_last and not is_rebuild else activations + 1

    def recall(self, step: StepInput) -> Tensor:
        return torch.full((1, 4), -1.0)


class Successor:
    """Stands for the client of the next stage."""

    def __init__(self) -> None:
        self.received: list[Frame] = []
        self.is_reachable = True
        self.answer = Status.ACCEPTED
        self.num_tries = 0

    async def post(self, _: str, body: bytes, __: float) -> tuple[int, bytes]:
        self.num_tries += 1
        if not self.is_reachable:
            raise Unreachable("next cannot be reached")
        self.received.append(decode_frame(body, len(body)))
        return self.answer, self.answer.name.encode()


class Peer:
    """A step runner, the stage that it computes, and what it says."""

    def __init__(self, *, is_last: bool) -> None:
        self.stage = FakeStage(is_last=is_last)
        self.successor = None if is_last else Successor()
        self.results: list[int] = []
        self.troubles: list[EdgeDown | FenceFailed] = []
        self.runner = StepRunner(ThreadPoolExecutor(1), self._note, self.troubles.append)

    async def _note(self, header: StepHeader, _: StepOutput) -> None:
        self.results.append(header.number)

    def begin(self, epoch: int, codec: CodecName = "none", predecessor: str | None = "before") -> None:
        fence = Fence(
            epoch=epoch,
            config=WHOLE,
            number=1,
            num_blocks=8,
            predecessor=predecessor,
            successor=None,
            codec_in=codec,
            codec_out=codec,
        )
        if self.successor is not None:
            fence = msgspec.structs.replace(fence, successor=_endpoint())
        client = cast(Http2Client, self.successor)
        edge = None if self.successor is None else Edge(PeerId("next"), client, client)
        self.runner.begin_epoch(Epoch(fence, cast(Stage, self.stage), edge))

    def take(
        self,
        epoch: int,
        number: int,
        sender: str = "before",
        first_stage: int = 0,
        last_stage: int = 3,
        codec: CodecName = "none",
    ) -> Status:
        return self.runner.take(sender, step_frame(epoch, number, first_stage, last_stage, codec))


def step_frame(
    epoch: int, number: int, first_stage: int = 0, last_stage: int = 3, codec: CodecName = "none"
) -> Frame:
    """A step of one token, whose activations are its number."""
    chunk = SequenceChunk(SequenceId(0), [1], 0, [BlockId(0)], sample=None)
    header = StepHeader(
        epoch=epoch,
        number=number,
        first_stage=first_stage,
        last_stage=last_stage,
        is_rebuild=False,
        step=msgspec.Raw(msgspec.msgpack.encode(StepInput(number, [chunk]))),
        codec=codec,
    )
    frame = b"".join(encode_frame(STEP, header, CODECS[codec].encode(torch.full((1, 4), float(number)))))
    return decode_frame(bytearray(frame), len(frame))


def header_of(frame: Frame) -> StepHeader:
    return frame.header(msgspec.msgpack.Decoder(StepHeader))


def _endpoint() -> Endpoint:
    return Endpoint(peer_id="next", host="127.0.0.1", port=1)


@contextlib.asynccontextmanager
async def running(peer: Peer) -> AsyncIterator[Peer]:
    task = asyncio.create_task(peer.runner.run())
    peer.begin(1)
    try:
        yield peer
    finally:
        task.cancel()


def num_out(peer: Peer) -> int:
    """How many steps have come out of a peer."""
    return len(peer.results) + len(peer.successor.received if peer.successor else ())


async def test_steps_are_computed_once_and_in_order() -> None:
    async with running(Peer(is_last=True)) as peer:
        assert [peer.take(1, number) for number in (2, 1, 1, 0, 2)] == [Status.ACCEPTED] * 5
        await until(lambda: num_out(peer) == 3)
        assert peer.take(1, 0) == Status.ACCEPTED, "it came before, and need not be sent again"
        assert peer.stage.computed == [0, 1, 2]
        assert sorted(peer.results) == [0, 1, 2]


async def test_activations_are_handed_on_with_the_step_as_it_came() -> None:
    async with running(Peer(is_last=False)) as peer:
        peer.take(1, 0)
        await until(lambda: num_out(peer) == 1)
        assert peer.successor is not None
        (frame,) = peer.successor.received
        assert torch.equal(frame.tensors[0], torch.full((1, 4), 1.0))
        assert header_of(frame).number == 0


async def test_a_step_that_ends_before_this_stage_is_passed_on_uncomputed() -> None:
    async with running(Peer(is_last=True)) as peer:
        peer.take(1, 0, last_stage=0)
        await until(lambda: num_out(peer) == 1)
        assert (peer.stage.computed, peer.results) == ([], [0])


async def test_the_stage_before_the_first_that_computes_sends_what_it_has_logged() -> None:
    async with running(Peer(is_last=False)) as peer:
        peer.take(1, 0, first_stage=2)
        await until(lambda: num_out(peer) == 1)
        assert peer.successor is not None
        assert torch.equal(peer.successor.received[0].tensors[0], torch.full((1, 4), -1.0))
        assert peer.stage.computed == []


async def test_epochs_that_ended_or_have_not_begun_are_told_apart() -> None:
    async with running(Peer(is_last=True)) as peer:
        assert peer.take(0, 0) == Status.STALE
        assert peer.take(2, 0) == Status.NOT_YET
        peer.begin(2)
        assert peer.take(1, 0) == Status.STALE
        assert peer.take(2, 0) == Status.ACCEPTED
        await until(lambda: num_out(peer) == 1)
        assert peer.stage.computed == [0]


async def test_only_its_predecessor_may_send_steps() -> None:
    async with running(Peer(is_last=True)) as peer:
        assert peer.take(1, 0, sender="another") == Status.REFUSED
        assert peer.take(1, 0) == Status.ACCEPTED
        await until(lambda: num_out(peer) == 1)


async def test_a_successor_that_cannot_be_reached_is_told_of_once_an_epoch() -> None:
    async with running(Peer(is_last=False)) as peer:
        assert peer.successor is not None
        peer.successor.is_reachable = False
        peer.take(1, 0)
        await until(lambda: peer.troubles)
        peer.take(1, 1)
        await until(lambda: peer.successor is not None and peer.successor.num_tries > 4)
        assert peer.troubles == [EdgeDown(epoch=1, successor="next", reason="next cannot be reached")]
        peer.runner.tell_again()
        await until(lambda: len(peer.troubles) == 2)
        assert peer.troubles[0] == peer.troubles.pop()
        peer.successor.is_reachable = True
        await until(lambda: num_out(peer) == 2)
        peer.successor.is_reachable = False
        peer.begin(2)
        peer.take(2, 0)
        await until(lambda: len(peer.troubles) == 2)
        assert peer.troubles[1].epoch == 2


async def test_an_edge_that_refuses_a_step_says_so() -> None:
    async with running(Peer(is_last=False)) as peer:
        assert peer.successor is not None
        peer.successor.answer = Status.REFUSED
        peer.take(1, 0)
        await until(lambda: peer.troubles)
        assert peer.troubles == [EdgeDown(epoch=1, successor="next", reason="REFUSED", is_refusal=True)]


@pytest.mark.parametrize("codec", ["fp8", "int8"])
async def test_activations_come_and_go_in_the_codec_of_the_edge(codec: CodecName) -> None:
    async with running(Peer(is_last=False)) as peer:
        assert peer.successor is not None
        peer.begin(2, codec)
        assert peer.take(2, 0, codec="int8" if codec == "fp8" else "fp8") == Status.REFUSED
        assert peer.take(2, 0, codec=codec) == Status.ACCEPTED
        peer.take(2, 1, first_stage=2)
        peer.take(2, 2, last_stage=0)
        await until(lambda: num_out(peer) == 3)
        frames = {header_of(frame).number: frame for frame in peer.successor.received}
        for number, value in ((0, 1.0), (1, -1.0)):
            assert header_of(frames[number]).codec == codec
            decoded = CODECS[codec].decode(frames[number].tensors, torch.float32)
            assert torch.equal(decoded, torch.full((1, 4), value)), "computed and recalled alike"
        assert header_of(frames[2]).codec == "none", "what passes by has no activations"


async def test_a_relayed_step_comes_from_the_coordinator_and_is_acknowledged_to_it() -> None:
    async with running(Peer(is_last=True)) as peer:
        peer.begin(2, predecessor=None)
        assert peer.take(2, 0) == Status.REFUSED, "who would send straight is no predecessor"
        for _ in range(2):
            received = peer.runner.take_from_coordinator(step_frame(2, 0))
            assert received == Received(epoch=2, number=0, status=Status.ACCEPTED)
        stale = peer.runner.take_from_coordinator(step_frame(1, 0))
        assert stale == Received(epoch=1, number=0, status=Status.STALE)
        await until(lambda: num_out(peer) == 1)
        assert peer.stage.computed == [0]


async def test_a_stage_that_fails_says_so_and_does_not_end() -> None:
    async with running(Peer(is_last=True)) as peer:
        peer.stage.fails = True
        peer.take(1, 0)
        await until(lambda: peer.troubles)
        assert peer.troubles == [FenceFailed(epoch=1, reason="MemoryError: no room")]
        peer.stage.fails = False
        peer.begin(2)
        peer.take(2, 0)
        await until(lambda: num_out(peer) == 1)


@pytest.mark.parametrize("is_last", [True, False])
async def test_nothing_of_an_ended_epoch_is_handed_on(*, is_last: bool) -> None:
    async with running(Peer(is_last=is_last)) as peer:
        peer.take(1, 1)  # waits for its turn, which never comes
        peer.begin(2)
        peer.take(2, 0)
        await until(lambda: num_out(peer) == 1)
        await asyncio.sleep(0.05)
        assert peer.stage.computed == [0]
