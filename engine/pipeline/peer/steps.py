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
from distllm.engine.pipeline.delivery import Refused, Status
from distllm.engine.pipeline.messages import STEP, EdgeDown, Fence, FenceFailed, Received, StepHeader, Work
from distllm.engine.pipeline.peer.edge import Edge
from distllm.engine.pipeline.peer.stage import Stage, nothing_of
from distllm.engine.pipeline.protocol.stage_ledger import StageLedger, Verdict
from distllm.engine.pipeline.wire.activation_codec import CODECS
from distllm.engine.pipeline.wire.codec_names import CodecName
from distllm.engine.pipeline.wire.frame import Frame, encode_frame

logger = logging.getLogger("distllm.pipeline")

_STATUS = {
    Verdict.ACCEPTED: Status.ACCEPTED,
    Verdict.KNOWN: Status.ACCEPTED,
    Verdict.STALE: Status.STALE,
    Verdict.NOT_YET: Status.NOT_YET,
    Verdict.FULL: Status.FULL,
}
_decode_header = msgspec.msgpack.Decoder(StepHeader)
_decode_step = msgspec.msgpack.Decoder(StepInput)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What a peer is in an epoch."""

    fence: Fence
    stage: Stage
    edge: Edge | None


@dataclass(frozen=True, slots=True)
class Activations:
    """Of a step's tokens, as `tensors` of a codec."""

    codec: CodecName
    tensors: tuple[Tensor, ...]


_NO_ACTIVATIONS = Activations("none", (torch.empty(0),))


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
        self._ledger: StageLedger[tuple[StepHeader, tuple[Tensor, ...]]] = StageLedger()
        self._epoch: Epoch | None = None
        self._arrived = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._began_s: float | None = None
        self._told: set[tuple[int, bool]] = set()  # in which epoch the edge was down, and whether by a refusal
        self.work = Work()

    @property
    def busy_s(self) -> float:
        """How long the present step has been computed; 0 where there is none."""
        return 0.0 if self._began_s is None else time.monotonic() - self._began_s

    @property
    def epoch(self) -> int:
        return self._ledger.epoch

    def begin_epoch(self, epoch: Epoch) -> bool:
        """False where that has begun before, or a later one has."""
        has_begun = self._ledger.begin_epoch(epoch.fence.epoch)
        if has_begun:
            self._epoch = epoch
            self._told.clear()
        return has_begun

    def tell_again(self) -> None:
        """Report anew what is still down: the coordinator may have missed it, as it was out of reach."""
        self._told.clear()

    def take(self, sender: str | None, frame: Frame) -> Status:
        """A step that has come from `sender`, None for the coordinator. Raises MalformedFrame."""
        return self._offer(sender, frame.header(_decode_header), frame.tensors)

    def take_from_coordinator(self, frame: Frame) -> Received | None:
        """A step of the coordinator's, or one that it relays: what to tell it of that. Raises MalformedFrame."""
        header = frame.header(_decode_header)
        status = self._offer(None, header, frame.tensors)
        if self._epoch is None or self._epoch.fence.number == 0:
            return None
        return Received(epoch=header.epoch, number=header.number, status=status)

    def _offer(self, sender: str | None, header: StepHeader, tensors: tuple[Tensor, ...]) -> Status:
        is_first_stage = False
        if self._epoch is not None and header.epoch == self.epoch:
            fence = self._epoch.fence
            is_first_stage = fence.number == 0
            if sender != fence.predecessor or header.codec not in ("none", fence.codec_in):
                return Status.REFUSED
        item = header, tensors
        verdict = self._ledger.offer(header.epoch, header.number, item, is_repeated=not is_first_stage)
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

    async def _apply(self, header: StepHeader, activations: tuple[Tensor, ...]) -> None:
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

    async def _hand_on(self, epoch: Epoch, header: StepHeader, output: Activations | StepOutput) -> None:
        if isinstance(output, StepOutput):
            await self._send_result(header, output)
            return
        assert epoch.edge is not None
        successor = epoch.edge.successor

        def on_unreachable(reason: str, *, is_refusal: bool = False) -> None:
            trouble = EdgeDown(epoch=header.epoch, successor=successor, reason=reason, is_refusal=is_refusal)
            if (header.epoch, is_refusal) not in self._told:  # of another step, or of another attempt
                self._told.add((header.epoch, is_refusal))
                self._report(trouble)

        sent = msgspec.structs.replace(header, codec=output.codec)
        frame = b"".join(encode_frame(STEP, sent, output.tensors))
        began_s = time.monotonic()
        try:
            is_wanted = partial(self._is_current, header)
            await epoch.edge.deliver(frame, is_wanted, on_unreachable)
        except Refused as error:
            on_unreachable(str(error), is_refusal=True)
        else:
            self._count(num_sent=1, sent_bytes=len(frame), send_s=time.monotonic() - began_s)

    def _count(self, **more: float) -> None:
        """Add to the counters of `work`."""
        sums = {name: getattr(self.work, name) + value for name, value in more.items()}
        self.work = msgspec.structs.replace(self.work, **sums)

    def _is_current(self, header: StepHeader) -> bool:
        return header.epoch == self.epoch


def _compute(epoch: Epoch, header: StepHeader, tensors: tuple[Tensor, ...]) -> Activations | StepOutput:
    """Raises MalformedActivations. What is recalled is encoded as it was before, to the same bits."""
    step, codec = _decode_step.decode(header.step), epoch.fence.codec_out
    if _computes(epoch, header):
        dtype: torch.dtype = getattr(torch, epoch.fence.config.dtype)
        activations = CODECS[header.codec].decode(tensors, dtype) if tensors else None
        output = epoch.stage.run(step, activations, is_rebuild=header.is_rebuild)
        return output if isinstance(output, StepOutput) else Activations(codec, CODECS[codec].encode(output))
    if epoch.fence.number == header.first_stage - 1:
        return Activations(codec, CODECS[codec].encode(epoch.stage.recall(step)))
    return nothing_of(step) if epoch.fence.successor is None else _NO_ACTIVATIONS


def _computes(epoch: Epoch, header: StepHeader) -> bool:
    """Whether a step is for this stage, and does not only come by in its turn."""
    return header.first_stage <= epoch.fence.number <= header.last_stage
