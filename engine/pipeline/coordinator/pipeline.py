"""The pipeline of the moment: which epoch its stages are in, which steps are under way, what becomes of a loss."""

import asyncio
import logging
import time
from concurrent.futures import Future
from itertools import pairwise

import msgspec

from distllm.engine.interface import ExecutorInfo, StepInput, StepOutput
from distllm.engine.pipeline.coordinator.events import EventLog
from distllm.engine.pipeline.coordinator.fencing import fences
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.placer import Placer
from distllm.engine.pipeline.coordinator.result_check import find_fault
from distllm.engine.pipeline.coordinator.routes import Route, Routes, chain_of
from distllm.engine.pipeline.coordinator.seating import Seating
from distllm.engine.pipeline.coordinator.situation import Present
from distllm.engine.pipeline.coordinator.stage import Stage, merge
from distllm.engine.pipeline.coordinator.status import PipelineStatus
from distllm.engine.pipeline.coordinator.wakefulness import Wakefulness
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import STEP, Result, StageConfig, StepHeader
from distllm.engine.pipeline.protocol.step_log import StepLog
from distllm.engine.pipeline.protocol.steps import NumberedStep
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.pipeline.wire.frame import encode_frame

logger = logging.getLogger("distllm.pipeline")

_LOOK_S = 0.05
"""How often stages are looked after."""


class Pipeline:
    """Runs in one event loop. `append` steps at any time once `ready` is done; they survive any loss of stages."""

    def __init__(
        self,
        members: Members,
        whole: StageConfig,
        vocab_size: int,
        placer: Placer,
        routes: Routes,
        settings: ClusterSettings,
        events: EventLog,
    ) -> None:
        self._members = members
        self._max_tokens = whole.max_num_batched_tokens
        self._vocab_size = vocab_size
        self._silence_s = settings.silence_s
        self._timeout_s = settings.patience.timeout_s
        self._placer = placer
        self._routing = routes
        self._events = events
        self._seating = Seating(members, whole, placer, settings.silence_s)
        self._wakefulness = Wakefulness()
        self._routes: list[Route] = []  # to the stages
        self._is_serving = False
        self._unsent: list[NumberedStep] = []  # once all stages are in the epoch that is about to begin
        self._rebuilt_tokens_total = 0
        self._log: StepLog | None = None
        self._futures: dict[int, Future[StepOutput]] = {}
        self._info: ExecutorInfo | None = None
        self.ready: asyncio.Future[ExecutorInfo] = asyncio.get_running_loop().create_future()

    @property
    def max_in_flight(self) -> int:
        """Steps that keep all stages busy: one for each, or more while links take long beside stages."""
        served = self._placer.served
        return max(1, len(self._stages), 0 if served is None else served.num_micro_batches)

    @property
    def status(self) -> PipelineStatus:
        return PipelineStatus(
            stages=self._stages,
            routes=self._routes,
            epoch=None if self._log is None else self._log.epoch,
            is_serving=self._is_serving,
            waiting=self._seating.waiting,
            predicted=self._placer.served,
            num_in_flight=len(self._futures),
            rebuilt_tokens_total=self._rebuilt_tokens_total,
        )

    def present(self) -> Present:
        """What a plan must know of the pipeline."""
        return Present(
            peer_ids=self._seating.present(),
            serving=tuple(self._seating.kept()),
            num_blocks=0 if self._info is None else self._info.num_blocks,
            reload_s=max((stage.info.load_s for stage in self._stages), default=0.0),
            quantization=self._seating.quantization,
        )

    def append(self, step: StepInput, future: "Future[StepOutput]") -> None:
        """Compute a step, after those that were appended before it."""
        assert self._log is not None
        self._futures[step.step_id] = future
        numbered = self._log.append(step)
        if self._is_serving:
            self._send(numbered)
        else:
            self._unsent += numbered

    def take_result(self, sender: PeerId, result: Result) -> str | None:
        """Results are the last stage's to give, and nobody else's. What is wrong with one that cannot be.

        Its sender is lost with that: the step is computed again.
        """
        if self._log is None or sender != self._stages[-1].peer_id:
            return None
        numbered = self._log.awaited(result.epoch, result.number)
        if numbered is None:
            return None
        if not numbered.is_rebuild and (fault := find_fault(numbered.step, result.output, self._vocab_size)):
            self._members[sender].blame(f"it {fault}")
            self._members.changed.set()
            return fault
        for commit in self._log.commit(result.epoch, result.number, result.output):
            self._futures.pop(commit.step.step_id).set_result(commit.output)
        return None

    def has_edge(self, source: PeerId, target: str, epoch: int) -> bool:
        """Whether a peer sends its steps to another in an epoch, which is the present one."""
        if self._log is None or epoch != self._log.epoch:
            return False
        return any((stage.peer_id, after.peer_id) == (source, target) for stage, after in pairwise(self._stages))

    def relayed_to(self, sender: PeerId, epoch: int) -> PeerId | Status:
        """To whom the steps of a stage are to be relayed, or why they are not."""
        if self._log is None or epoch > self._log.epoch:
            return Status.NOT_YET
        if epoch < self._log.epoch:
            return Status.STALE
        for stage, successor, route in zip(self._stages, self._stages[1:], self._routes[1:], strict=False):
            if stage.peer_id == sender and not route.is_direct:
                return successor.peer_id
        return Status.REFUSED

    async def run(self) -> None:
        """Form a pipeline, serve until it must change, and form another, for ever."""
        await asyncio.gather(self._serve(), self._wakefulness.run())

    async def _serve(self) -> None:
        stopped_s, was_loss = time.monotonic(), False
        while True:
            stages = await self._seating.seat()
            if await self._begin_epoch(stages):
                self._tell_of(time.monotonic() - stopped_s, was_loss)
                was_loss = await self._until_changed()
                stopped_s = time.monotonic()
            else:
                was_loss = self.ready.done()
            self._is_serving = False

    @property
    def _stages(self) -> list[Stage]:
        return self._seating.stages

    def _tell_of(self, stopped_s: float, was_loss: bool) -> None:
        """That steps run again, which none did for `stopped_s`, and where they give other bits."""
        for peer_id, change in self._seating.settle():
            logger.warning("%s %s", peer_id, change)
            self._events.note("rounding", change, peer_id)
        if (moved := self._routing.settle(self._stages, self._routes)) is not None:
            logger.warning("%s", moved)
            self._events.note("rounding", moved)
        chain = chain_of(self._stages, self._routes)
        logger.info("serving over %s, after %.0f ms", chain, 1000 * stopped_s)
        if was_loss:
            self._events.note_recovery(chain, stopped_s)
        else:
            self._events.note("planned", chain)

    async def _begin_epoch(self, stages: list[Stage]) -> bool:
        """Fence the stages, and send what is not committed. False where one was lost meanwhile."""
        held = [self._stages.index(stage) if stage in self._stages else None for stage in stages]
        routes = self._routing.of(stages)
        if self._log is None:
            self._info = merge([stage.info for stage in stages], [route.codec for route in routes])
            first_epoch = time.time_ns() // 1_000_000
            self._log = StepLog(len(stages), self._info.num_blocks, self._max_tokens, epoch=first_epoch)
        assert self._info is not None
        self._unsent = self._log.begin_epoch(held)
        self._seating.stages, self._routes = stages, routes
        for stage in stages:
            self._members[stage.peer_id].standing.forgive()
        self._fence()
        links = self._links()
        give_up_s = time.monotonic() + self._timeout_s
        while late := [it.peer_id for it in stages if self._members[it.peer_id].fenced < self._log.epoch]:
            if time.monotonic() > give_up_s:
                for peer_id in late:
                    self._members[peer_id].blame(f"it did not begin an epoch within {self._timeout_s:g} s")
            if self._blame_lost() or self._changed_routes():
                return False
            if self._links() != links:  # a fence may be lost with the link that it was sent down
                return False
            await self._members.wait_for_change(_LOOK_S)
        self._is_serving = True
        self._send(self._unsent)
        self._unsent = []
        if not self.ready.done():
            self.ready.set_result(self._info)
        return True

    def _links(self) -> list[int]:
        return [self._members[stage.peer_id].num_links for stage in self._stages]

    def _fence(self) -> None:
        assert self._log is not None
        assert self._info is not None
        told = fences(
            self._log.epoch,
            self._info.num_blocks,
            self._stages,
            self._routes,
            lambda peer_id: self._members[peer_id].endpoint,
        )
        for stage, fence in zip(self._stages, told, strict=True):
            self._members[stage.peer_id].send(fence)

    def _send(self, steps: list[NumberedStep]) -> None:
        first = self._members[self._stages[0].peer_id]
        for numbered in steps:
            header = StepHeader(
                epoch=numbered.epoch,
                number=numbered.number,
                first_stage=numbered.first_stage,
                last_stage=numbered.last_stage,
                is_rebuild=numbered.is_rebuild,
                step=msgspec.Raw(msgspec.msgpack.encode(numbered.step)),
            )
            first.send_frame(b"".join(encode_frame(STEP, header)))
            self._rebuilt_tokens_total += numbered.step.num_tokens if numbered.is_rebuild else 0

    async def _until_changed(self) -> bool:
        """Return as soon as a stage is no use any more, or a better plan is ready.

        Whether it was a loss. Meanwhile peers without a seat make themselves ready, also those that come later.
        """
        self._seating.have_forgotten()
        while self._seating.better() is None:
            if self._blame_lost():
                return True
            if changed := self._changed_routes():
                return not all(route.is_direct for route in changed)
            self._seating.load_spares()
            await self._members.wait_for_change(_LOOK_S)
        return False

    def _changed_routes(self) -> list[Route]:
        """Routes that steps would now have to take in place of those that they were sent by.

        No peer is to blame for that. What is under way may be lost, unless the stages see each other again.
        """
        now = self._routing.of(self._stages)
        return [new for old, new in zip(self._routes, now, strict=True) if old != new]

    def _blame_lost(self) -> bool:
        """Whether a stage is lost. Its peer does not get its seat again at once."""
        is_lost = False
        for stage in self._stages:
            reason = self._why_lost(stage)
            if reason is not None:
                is_lost = True
                logger.warning("%s is lost: it %s", stage.peer_id, reason)
                self._events.note("suspected", f"it {reason}", stage.peer_id)
                self._members[stage.peer_id].standing.note_absence(reason)
        return is_lost

    def _why_lost(self, stage: Stage) -> str | None:
        member = self._members[stage.peer_id]
        if not member.is_connected:
            return "has gone"
        if member.boot != stage.boot:
            return "was started anew"
        if min(member.silent_s, self._wakefulness.awake_s) > self._silence_s:
            return f"has been silent for {member.silent_s * 1000:.0f} ms"
        if stage.config not in member.loaded:
            return "has lost its layers"
        return None if member.trouble is None else f"is in trouble: {member.trouble}"
