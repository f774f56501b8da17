"""A peer's part in an epoch: takes steps in any order, computes them in theirs, and hands on what comes out."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import msgspec
import torch
from torch import Tensor

from distllm.engine.interface import StepInput, StepOutput
from distllm.engine.pipeline.delivery import Refused, Status, deliver
from distllm.engine.pipeline.messages import STEP, EdgeDown, Fence, FenceFailed, StepHeader, Work
from distllm.engine.pipeline.peer.stage import Stage, nothing_of
from distllm.engine.pipeline.protocol.stage_ledger import StageLedger, Verdict
from distllm.engine.pipeline.transport.client import Http2Client
from distllm.engine.pipeline.wire.frame import Frame, encode_frame

logger = logging.getLogger("distllm.pipeline")

_STATUS = {
    Verdict.ACCEPTED: Status.ACCEPTED,
    Verdict.KNOWN: Status.ACCEPTED,
    Verdict.STALE: Status.STALE,
    Verdict.NOT_YET: Status.NOT_YET,
    Verdict.FULL: Status.FULL,
}
_NO_ACTIVATIONS = torch.empty(0)
_decode_header = msgspec.msgpack.Decoder(StepHeader)
_decode_step = msgspec.msgpack.Decoder(StepInput)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What a peer is in an epoch."""

    fence: Fence
    stage: Stage
    successor: Http2Client | None


class StepRunner:
    """Runs in an event loop, and computes in a thread of its own.

    `send_result` takes what the last stage yields; `report` hears why steps cannot be handed on or computed.
    """

    def __init__(
        self,
        compute: ThreadPoolExecutor,
        send_result: Callable[[StepHeader, StepOutput], Awaitable[None]],
        report: Callable[[EdgeDown | FenceFailed], None],
    ) -> None:
        self._compute = compute
        self._send_result = send_result
        self._report = report
        self._ledger: StageLedger[tuple[StepHeader, Tensor | None]] = StageLedger()
        self._epoch: Epoch | None = None
        self._arrived = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._began_s: float | None = None
        self._cut_off_in: int | None = None  # the epoch
        self.work = Work()

    @property
    def busy_s(self) -> float:
        """How long the present step has been computed; 0 where there is none."""
        return 0.0 if self._began_s is None else time.monotonic() - self._began_s

    @property
    def epoch(self) -> int:
        return self._ledger.epoch

    def begin_epoch(self, epoch: Epoch) -> None:
        if self._ledger.begin_epoch(epoch.fence.epoch):
            self._epoch = epoch

    def take(self, sender: str | None, frame: Frame) -> Status:
        """A step that has come from `sender`, None for the coordinator. Raises MalformedFrame."""
        header = frame.header(_decode_header)
        if self._epoch is not None and header.epoch == self.epoch and sender != self._epoch.fence.predecessor:
            return Status.REFUSED
        activations = frame.tensors[0] if frame.tensors else None
        verdict = self._ledger.offer(header.epoch, header.number, (header, activations))
        if verdict is Verdict.ACCEPTED:
            self._arrived.set()
        return _STATUS[verdict]

    async def run(self) -> None:
        """Apply steps as their turn comes, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while (item := self._ledger.take()) is not None:
                await self._apply(*item)

    async def _apply(self, header: StepHeader, activations: Tensor | None) -> None:
        epoch = self._epoch
        assert epoch is not None
        loop = asyncio.get_running_loop()
        began_s = self._began_s = time.monotonic()
        try:
            output = await loop.run_in_executor(self._compute, _compute, epoch, header, activations)
        except Exception as error:
            logger.exception("a step failed")
            self._report(FenceFailed(epoch=header.epoch, reason=f"{type(error).__name__}: {error}"))
            return
        finally:
            self._began_s = None
        if _computes(epoch, header):
            self._count(num_steps=1, compute_s=time.monotonic() - began_s)
        sending = asyncio.create_task(self._hand_on(epoch, header, output))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _hand_on(self, epoch: Epoch, header: StepHeader, output: "Tensor | StepOutput") -> None:
        if isinstance(output, StepOutput):
            await self._send_result(header, output)
            return
        assert epoch.successor is not None
        successor = epoch.successor.address.peer_id

        def on_unreachable(reason: str) -> None:
            if self._cut_off_in == header.epoch:  # which has been said of another step, or another attempt
                return
            self._cut_off_in = header.epoch
            self._report(EdgeDown(epoch=header.epoch, successor=successor, reason=reason))

        frame = b"".join(encode_frame(STEP, header, [output]))
        began_s = time.monotonic()
        try:
            is_wanted = partial(self._is_current, header)
            await deliver(epoch.successor, "/v1/step", frame, is_wanted, on_unreachable)
        except Refused as error:
            on_unreachable(str(error))
        else:
            self._count(num_sent=1, sent_bytes=len(frame), send_s=time.monotonic() - began_s)

    def _count(self, **more: float) -> None:
        """Add to the counters of `work`."""
        sums = {name: getattr(self.work, name) + value for name, value in more.items()}
        self.work = msgspec.structs.replace(self.work, **sums)

    def _is_current(self, header: StepHeader) -> bool:
        return header.epoch == self.epoch


def _compute(epoch: Epoch, header: StepHeader, activations: Tensor | None) -> "Tensor | StepOutput":
    step = _decode_step.decode(header.step)
    if _computes(epoch, header):
        return epoch.stage.run(step, activations, is_rebuild=header.is_rebuild)
    if epoch.fence.number == header.first_stage - 1:
        return epoch.stage.recall(step)
    return nothing_of(step) if epoch.fence.successor is None else _NO_ACTIVATIONS


def _computes(epoch: Epoch, header: StepHeader) -> bool:
    """Whether a step is for this stage, and does not only come by in its turn."""
    return header.first_stage <= epoch.fence.number <= header.last_stage
