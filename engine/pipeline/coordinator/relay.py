"""Passes steps on between stages that cannot reach each other, and their acknowledgement back.

A sender is answered what the addressee answers, as if it had sent to it: so what is lost on the way is sent again,
and what comes twice is applied once.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import STEP, Received, StepHeader
from distllm.engine.pipeline.peer.edge import RELAY_PATH
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import Post, Reply
from distllm.engine.pipeline.wire.frame import decode_frame
from distllm.engine.pipeline.wire.malformed_frame import MalformedFrame, OtherKind

logger = logging.getLogger("distllm.pipeline")

_MAX_WAITING_BYTES = 64 << 20
"""For one addressee; a sender is told to try again later where there would be more."""
_RECEIPT_TIMEOUT_S = 5.0
_LEAST_BYTES_PER_S = 1e6
"""A link is broken where a step has not arrived after the timeout, and what is under way takes at this rate."""

_decode_header = msgspec.msgpack.Decoder(StepHeader)

Addressee = Callable[[PeerId, int], "PeerId | Status"]
"""To whom a peer's steps of an epoch are to be relayed, or why not."""


@dataclass(slots=True)
class _UnderWay:
    """A step that has been passed on, and those who wait for its receipt."""

    num_bytes: int
    receipt: asyncio.Future[Status] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Relay:
    """Runs in the coordinator's event loop. What it passes on is checked, as it shares a link with other frames."""

    def __init__(
        self,
        members: Members,
        addressee: Addressee,
        max_bytes: int,
        receipt_timeout_s: float = _RECEIPT_TIMEOUT_S,
    ) -> None:
        self._members = members
        self._addressee = addressee
        self._max_bytes = max_bytes
        self._receipt_timeout_s = receipt_timeout_s
        self._under_way: dict[PeerId, dict[tuple[int, int], _UnderWay]] = {}

    @property
    def posts(self) -> dict[str, Post]:
        return {RELAY_PATH: self._take}

    def take_receipt(self, sender: PeerId, receipt: Received) -> None:
        """What `sender` made of a step that was passed on to it."""
        under_way = self._under_way.get(sender, {}).get((receipt.epoch, receipt.number))
        if under_way is not None and not under_way.receipt.done():
            under_way.receipt.set_result(receipt.status)

    async def _take(self, caller: PeerId | None, body: bytes) -> Reply:
        assert caller is not None
        try:
            frame = decode_frame(body, self._max_bytes)
            if frame.kind != STEP:
                raise OtherKind(frame.kind, "step")
            header = frame.header(_decode_header)
        except MalformedFrame as error:
            logger.warning("%s sent what is no step: %s", caller, error)
            return Reply.refusal(400, str(error))
        status = await self._pass_on(caller, header, body)
        return Reply(status, b"" if status is Status.ACCEPTED else status.name.encode())

    async def _pass_on(self, caller: PeerId, header: StepHeader, body: bytes) -> Status:
        addressee = self._addressee(caller, header.epoch)
        if isinstance(addressee, Status):
            return addressee
        waiting = self._under_way.setdefault(addressee, {})
        number, member = (header.epoch, header.number), self._members[addressee]
        num_bytes = len(body) + sum(it.num_bytes for it in waiting.values())
        if number not in waiting:
            if waiting and num_bytes > _MAX_WAITING_BYTES:
                return Status.FULL
            waiting[number] = _UnderWay(len(body))
            member.send_step(body)
        receipt, link = waiting[number].receipt, member.num_links
        try:
            await asyncio.wait([receipt], timeout=self._receipt_timeout_s + num_bytes / _LEAST_BYTES_PER_S)
        finally:
            waiting.pop(number, None)
        if receipt.done():
            return receipt.result()
        return self._give_up(member, link, self._addressee(caller, header.epoch) == addressee)

    def _give_up(self, member: Member, link: int, is_wanted: bool) -> Status:
        """Nothing has been heard of a step that was sent down a link."""
        if is_wanted and member.num_links == link:
            member.end_link()
        return Status.FULL if is_wanted else Status.STALE
