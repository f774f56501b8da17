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
from distllm.engine.pipeline.messages import STEP, EdgeDown, Endpoint, Fence, FenceFailed, StepHeader
from distllm.engine.pipeline.peer.stage import Stage, nothing_of
from distllm.engine.pipeline.peer.steps import Epoch, StepRunner
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable
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

    address = Address(PeerId("next"), "127.0.0.1", 1)

    def __init__(self) -> None:
        self.received: list[Frame] = []
        self.is_reachable = True
        self.num_tries = 0

    async def post(self, _: str, body: bytes, __: float) -> tuple[int, bytes]:
        self.num_tries += 1
        if not self.is_reachable:
            raise Unreachable("next cannot be reached")
        self.received.append(decode_frame(body, len(body)))
        return Status.ACCEPTED, b""


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

    def begin(self, epoch: int) -> None:
        fence = Fence(epoch=epoch, config=WHOLE, number=1, num_blocks=8, predecessor="before", successor=None)
        if self.successor is not None:
            fence = msgspec.structs.replace(fence, successor=_endpoint())
        client = cast(Http2Client | None, self.successor)
        self.runner.begin_epoch(Epoch(fence, cast(Stage, self.stage), client))

    def take(
        self, epoch: int, number: int, sender: str = "before", first_stage: int = 0, last_stage: int = 3
    ) -> Status:
        chunk = SequenceChunk(SequenceId(0), [1], 0, [BlockId(0)], sample=None)
        step = msgspec.Raw(msgspec.msgpack.encode(StepInput(number, [chunk])))
        header = StepHeader(
            epoch=epoch,
            number=number,
            first_stage=first_stage,
            last_stage=last_stage,
            is_rebuild=False,
            step=step,
        )
        frame = b"".join(encode_frame(STEP, header, [torch.full((1, 4), float(number))]))
        return self.runner.take(sender, decode_frame(bytearray(frame), len(frame)))


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
        assert frame.header(msgspec.msgpack.Decoder(StepHeader)).number == 0


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
        peer.successor.is_reachable = True
        await until(lambda: num_out(peer) == 2)
        peer.successor.is_reachable = False
        peer.begin(2)
        peer.take(2, 0)
        await until(lambda: len(peer.troubles) == 2)
        assert peer.troubles[1].epoch == 2


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
