"""Peers without a model or a network: they do what comes down their link, and answer at once."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from distllm.engine.interface import ChunkOutput, ExecutorInfo, StepInput, StepOutput
from distllm.engine.numerics import name_numerics
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.pipeline import Pipeline
from distllm.engine.pipeline.coordinator.placer import Placer
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.messages import STEP, Endpoint, Fence, Load, Result, StageConfig, StepHeader, ToPeer
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.pipeline.wire.frame import Frame
from distllm.engine.pipeline.wire.stream_decoder import StreamDecoder
from distllm.engine.quantization.config import QuantizationWish
from tests.engine.pipeline.coordinator.peers import SAMPLE
from tests.scheduler.slot_executor import executor_info

WHOLE = msgspec.structs.replace(SAMPLE.whole, end=6, num_layers=6, max_model_len=64)
TOKEN = 7
_decode_message = msgspec.msgpack.Decoder(ToPeer)
_decode_header = msgspec.msgpack.Decoder(StepHeader)
_decode_step = msgspec.msgpack.Decoder(StepInput)


class FakePeer:
    """Connected from the start. The first stage answers for the whole chain, unless `withholds`.

    With `withholds_fences` it leaves no epoch by itself.
    """

    def __init__(
        self,
        members: Members,
        pipeline: Pipeline,
        name: str,
        wish: QuantizationWish | None = None,
        num_ranks: int = 1,
    ) -> None:
        self.peer_id = PeerId(name)
        self.wish: QuantizationWish | None = wish
        self.num_ranks = num_ranks
        self._members, self._pipeline = members, pipeline
        self.loads: list[StageConfig] = []
        self.numerics = "exact"  # what measures best here
        self.fences: list[Fence] = []
        self.steps: list[StepHeader] = []
        self.refuses_loading: str | None = None
        self.token = TOKEN
        self.fault: str | None = None  # of its latest result
        self.is_loading = False  # until told otherwise
        self.withholds = self.withholds_fences = False
        self._tasks: list[asyncio.Task[None]] = []
        self.connect("boot-1")

    def connect(self, boot: str) -> None:
        member = self._members[self.peer_id]
        outbound = member.begin_link()
        member.begin_boot(boot, Endpoint(peer_id=self.peer_id, host="127.0.0.1", port=1), 1 << 30)
        member.wish = self.wish
        self._tasks = [asyncio.create_task(self._follow(outbound)), asyncio.create_task(self._beat())]
        self._members.changed.set()

    def fall_silent(self) -> None:
        for task in self._tasks:
            task.cancel()

    def leave(self) -> None:
        self.fall_silent()
        member = self._members[self.peer_id]
        member.outbound = member.endpoint = None
        self._members.changed.set()

    def lose_stages(self) -> None:
        """What a peer's ranks had loaded is gone, and it says so."""
        member = self._members[self.peer_id]
        for config in [*member.loaded]:
            member.lose(config)
        self._members.changed.set()

    async def _beat(self) -> None:
        while True:
            self._members[self.peer_id].heard_s = time.monotonic()
            await asyncio.sleep(0.02)

    async def _follow(self, outbound: "asyncio.Queue[bytes | None]") -> None:
        decoder = StreamDecoder(1 << 20)
        while (piece := await outbound.get()) is not None:
            for frame in decoder.feed(piece):
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        member = self._members[self.peer_id]
        if frame.kind == STEP:
            self.steps.append(frame.header(_decode_header))
            if not self.withholds:
                self.answer(self.steps[-1])
            return
        match frame.header(_decode_message):
            case Load(config=config):
                self.loads.append(config)
                if self.is_loading:
                    return
                if self.refuses_loading is None:
                    member.loaded[config] = self._info(config)
                else:
                    member.refuse(config, self.refuses_loading)
            case Fence() as fence:
                self.fences.append(fence)
                if not self.withholds_fences:
                    self.answer_fence()
        self._members.changed.set()

    def _info(self, config: StageConfig) -> ExecutorInfo:
        info = executor_info(30 if config.begin == 0 else 20, 16, 64)
        numerics = name_numerics(config.numerics or self.numerics, self.num_ranks)
        return replace(info, numerics=numerics, num_ranks=self.num_ranks)

    def answer_fence(self) -> None:
        self._members[self.peer_id].fenced = self.fences[-1].epoch
        self._members.changed.set()

    def answer(self, header: StepHeader, sender: str | None = None) -> None:
        """As the last stage would, or as `sender`."""
        successor = self.fences[-1].successor
        last_stage = self.peer_id if successor is None else successor.peer_id
        step = _decode_step.decode(header.step)
        chunks = [ChunkOutput(chunk.sequence_id, self.token if chunk.sample else None) for chunk in step.chunks]
        result = Result(epoch=header.epoch, number=header.number, output=StepOutput(step.step_id, chunks))
        self.fault = self._pipeline.take_result(PeerId(sender or last_stage), result)


def placer_without_measurements(members: Members, num_stages: int, state_dir: Path) -> Placer:
    """Divides the model evenly at once, as its peers measure nothing."""
    settings = ClusterSettings(host="127.0.0.1", port=0, state_dir=str(state_dir), num_stages=num_stages)
    return Placer(members, Survey(members, SAMPLE), WHOLE, settings, patience_s=0.0)
