"""A relayed step is answered what its addressee answers; what is lost on the way is sent again."""

import asyncio

import msgspec
import pytest
import torch

from distllm.engine.interface import StepInput
from distllm.engine.pipeline.coordinator import relay as module
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.relay import Relay
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import CONTROL, STEP, Beat, Endpoint, Received, StepHeader
from distllm.engine.pipeline.peer.edge import RELAY_PATH
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import Reply
from distllm.engine.pipeline.transport.bulk import BULK_BYTES
from distllm.engine.pipeline.wire.frame import encode_frame

A, B, C = PeerId("a-1"), PeerId("b-1"), PeerId("c-1")
EPOCH = 5
MAX_BYTES = 1 << 20


class Relayed:
    """A relay from `A` to `B`, who has a link."""

    def __init__(self, receipt_timeout_s: float = 20.0) -> None:
        self.members = Members()
        self.target = self.members[B]
        self.link = self.target.begin_link()
        self.bulk = self.target.begin_bulk()
        self.target.begin_boot("1", Endpoint(peer_id=B, host="127.0.0.1", port=1), 1)
        self.epoch = EPOCH
        self.relay = Relay(self.members, self._addressee, MAX_BYTES, receipt_timeout_s)

    def _addressee(self, sender: PeerId, epoch: int) -> PeerId | Status:
        if epoch != self.epoch:
            return Status.STALE
        return B if sender == A else Status.REFUSED

    async def send(self, body: bytes, sender: PeerId = A) -> Reply:
        return await self.relay.posts[RELAY_PATH](sender, body)

    def receive(self, status: Status, number: int = 0, sender: PeerId = B) -> None:
        self.relay.take_receipt(sender, Received(epoch=EPOCH, number=number, status=status))


def frame(number: int = 0, num_bytes: int = 64, epoch: int = EPOCH) -> bytes:
    step = msgspec.Raw(msgspec.msgpack.encode(StepInput(0, [])))
    header = StepHeader(epoch=epoch, number=number, first_stage=0, last_stage=1, is_rebuild=False, step=step)
    return b"".join(encode_frame(STEP, header, [torch.zeros(1, num_bytes, dtype=torch.uint8)]))


@pytest.mark.parametrize("status", [Status.ACCEPTED, Status.FULL, Status.STALE, Status.REFUSED])
async def test_the_sender_is_answered_what_the_addressee_answers(status: Status) -> None:
    relayed = Relayed()
    sending = asyncio.create_task(relayed.send(frame()))
    assert await relayed.link.get() == frame()
    assert not sending.done(), "that it was passed on does not mean that it arrived"
    relayed.receive(status)
    assert (await sending).status == status


async def test_nobody_but_the_addressee_acknowledges() -> None:
    relayed = Relayed()
    sending = asyncio.create_task(relayed.send(frame()))
    await relayed.link.get()
    for sender in (A, C):
        relayed.receive(Status.ACCEPTED, sender=sender)
    relayed.receive(Status.ACCEPTED, number=1)
    await asyncio.sleep(0.01)
    assert not sending.done()
    relayed.receive(Status.ACCEPTED)
    assert (await sending).status == Status.ACCEPTED


async def test_what_is_large_goes_beside_the_link() -> None:
    relayed = Relayed()
    sending = asyncio.create_task(relayed.send(frame(num_bytes=BULK_BYTES)))
    assert len(await relayed.bulk.get() or b"") > BULK_BYTES
    assert relayed.link.empty()
    relayed.receive(Status.ACCEPTED)
    await sending


async def test_others_than_neighbours_of_the_epoch_are_not_relayed_between() -> None:
    relayed = Relayed()
    assert (await relayed.send(frame(), sender=C)).status == Status.REFUSED
    assert (await relayed.send(frame(epoch=EPOCH - 1))).status == Status.STALE
    assert relayed.link.empty()


async def test_what_is_no_whole_step_is_refused_before_it_is_passed_on() -> None:
    relayed = Relayed()
    damaged = bytearray(frame())
    damaged[-1] ^= 1
    beat = b"".join(encode_frame(CONTROL, Beat(boot="1", busy_s=0.0)))
    for body in (bytes(damaged), frame()[:-1], frame() + b"\0", b"", beat):
        assert (await relayed.send(body)).status == 400
    assert relayed.link.empty()


async def test_a_step_that_comes_again_waits_for_the_receipt_of_the_first() -> None:
    relayed = Relayed()
    twice = [asyncio.create_task(relayed.send(frame())) for _ in range(2)]
    assert await relayed.link.get() == frame()
    await asyncio.sleep(0.01)
    assert relayed.link.empty(), "nothing is lost while the link stands"
    relayed.receive(Status.ACCEPTED)
    assert [(await sending).status for sending in twice] == [Status.ACCEPTED] * 2


async def test_a_link_on_which_nothing_arrives_is_ended_and_the_step_wanted_again() -> None:
    relayed = Relayed(receipt_timeout_s=0.02)
    assert (await relayed.send(frame())).status == Status.FULL
    assert [relayed.link.get_nowait(), relayed.link.get_nowait()] == [frame(), None]
    assert relayed.bulk.get_nowait() is None
    assert not relayed.target.is_connected


async def test_what_an_earlier_epoch_waited_for_ends_no_link() -> None:
    relayed = Relayed(receipt_timeout_s=0.02)
    sending = asyncio.create_task(relayed.send(frame()))
    await relayed.link.get()
    relayed.epoch += 1
    assert (await sending).status == Status.STALE
    assert relayed.target.is_connected


async def test_a_slow_addressee_bounds_what_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING_BYTES", 1000)
    relayed = Relayed()
    sending = asyncio.create_task(relayed.send(frame(number=0, num_bytes=5000)))
    await relayed.link.get()
    assert (await relayed.send(frame(number=1))).status == Status.FULL
    relayed.receive(Status.ACCEPTED)
    assert (await sending).status == Status.ACCEPTED, "one is passed on however large it is"
    again = asyncio.create_task(relayed.send(frame(number=1)))
    await relayed.link.get()
    relayed.receive(Status.ACCEPTED, number=1)
    assert (await again).status == Status.ACCEPTED
