"""The pipeline of the moment: which peers are its stages, which steps are under way, what becomes of a loss."""

import asyncio
import logging
import time
from concurrent.futures import Future

import msgspec

from distllm.engine.interface import ExecutorInfo, StepInput, StepOutput
from distllm.engine.pipeline.coordinator.division import Seat, seat_peers
from distllm.engine.pipeline.coordinator.events import EventLog
from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.coordinator.placer import Placer, Present
from distllm.engine.pipeline.coordinator.stage import Stage, chain_of, merge
from distllm.engine.pipeline.coordinator.status import PipelineStatus
from distllm.engine.pipeline.coordinator.waiting import why_waiting
from distllm.engine.pipeline.messages import STEP, Fence, Load, Result, StageConfig, StepHeader
from distllm.engine.pipeline.protocol.step_log import StepLog
from distllm.engine.pipeline.protocol.steps import NumberedStep
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.wire.frame import encode_frame

logger = logging.getLogger("distllm.pipeline")

_LOOK_S = 0.05
"""How often stages are looked after."""
_FENCE_TIMEOUT_S = 30.0
_RETRY_S = 1.0
_LOADING_SILENCE_S = 10.0


class Pipeline:
    """Runs in one event loop. `append` steps at any time once `ready` is done; they survive any loss of stages."""

    def __init__(
        self, members: Members, whole: StageConfig, placer: Placer, silence_s: float, events: EventLog
    ) -> None:
        self._members = members
        self._whole = whole
        self._silence_s = silence_s
        self._placer = placer
        self._events = events
        self._numerics = whole.numerics  # in which all stages compute, so that any peer can have any layers
        self._stages: list[Stage] = []
        self._is_serving = False
        self._unsent: list[NumberedStep] = []  # once all stages are in the epoch that is about to begin
        self._waiting: str | None = None
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
            epoch=None if self._log is None else self._log.epoch,
            is_serving=self._is_serving,
            waiting=self._waiting,
            num_in_flight=len(self._futures),
            rebuilt_tokens_total=self._rebuilt_tokens_total,
        )

    def present(self) -> Present:
        """What a plan must know of the pipeline."""
        return Present(
            peer_ids=self._present(),
            serving=tuple(self._kept_seats()),
            num_blocks=0 if self._info is None else self._info.num_blocks,
            reload_s=max((stage.info.load_s for stage in self._stages), default=0.0),
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

    def take_result(self, sender: PeerId, result: Result) -> None:
        """Results are the last stage's to give, and nobody else's."""
        if self._log is None or sender != self._stages[-1].peer_id:
            return
        for commit in self._log.commit(result.epoch, result.number, result.output):
            self._futures.pop(commit.step.step_id).set_result(commit.output)

    async def run(self) -> None:
        """Form a pipeline, serve until it must change, and form another, for ever."""
        stopped_s, was_loss = time.monotonic(), False
        while True:
            stages = await self._seat()
            if await self._begin_epoch(stages):
                self._tell_of(stages, time.monotonic() - stopped_s, was_loss)
                was_loss = await self._until_changed()
                stopped_s = time.monotonic()
            else:
                was_loss = self.ready.done()
            self._is_serving = False

    def _tell_of(self, stages: list[Stage], stopped_s: float, was_loss: bool) -> None:
        """That steps run again, which none did for `stopped_s`."""
        chain = chain_of(stages)
        logger.info("serving over %s, after %.0f ms", chain, 1000 * stopped_s)
        if was_loss:
            self._events.note_recovery(chain, stopped_s)
        else:
            self._events.note("planned", chain)

    async def _seat(self) -> list[Stage]:
        """Stages whose peers are here and have loaded them."""
        while True:
            seats = self._seats()
            if seats is not None and (stages := self._loaded(seats)) is not None:
                self._waiting = None
                return stages
            num_needed = 1 if self._stages else self._placer.num_needed
            self._waiting = why_waiting(
                self._members.connected(), len(self._present()), num_needed, seats, self._placer.waits_for
            )
            await self._members.wait_for_change(_RETRY_S)

    def _seats(self) -> list[Seat] | None:
        """A better plan whose stages are loaded; else the same stages as before, with others in the places of those
        lost; else, where too few are left or nothing was served, a new plan. None while there is none.
        """
        if (better := self._better()) is not None:
            return better
        present = self._present()
        kept = self._kept_seats()
        seats = seat_peers(kept, present, self._has_loaded) if kept else None
        return seats or self._placer.seats(present)

    def _present(self) -> tuple[str, ...]:
        """Who may get a seat, in the order in which they joined."""
        return tuple(member.peer_id for member in self._members.connected() if self._is_fit(member))

    def _kept_seats(self) -> list[Seat]:
        return [Seat((stage.config.begin, stage.config.end), stage.peer_id) for stage in self._stages]

    def _is_fit(self, member: Member) -> bool:
        """Whether a peer may get a seat. One that loads is slow to answer."""
        return member.trouble is None and member.silent_s < max(self._silence_s, _LOADING_SILENCE_S)

    def _has_loaded(self, peer: str, layers: tuple[int, int]) -> bool:
        return self._config(layers) in self._members[PeerId(peer)].loaded

    def _config(self, layers: tuple[int, int]) -> StageConfig:
        return msgspec.structs.replace(self._whole, begin=layers[0], end=layers[1], numerics=self._numerics)

    def _fitting_config(self, seat: Seat) -> StageConfig:
        """What the peer of a seat serves there, or has loaded for it in the right numerics, or should."""
        if (present := self._present_config(seat)) is not None:
            return present
        for config, info in self._members[PeerId(str(seat.peer))].loaded.items():
            if (config.begin, config.end) == seat.layers and info.numerics == self._numerics:
                return config
        return self._config(seat.layers)

    def _present_config(self, seat: Seat) -> StageConfig | None:
        """What the peer of a seat serves there already."""
        for stage in self._stages:
            if stage.peer_id == seat.peer and (stage.config.begin, stage.config.end) == seat.layers:
                return stage.config if stage.config in self._members[stage.peer_id].loaded else None
        return None

    def _loaded(self, seats: list[Seat]) -> list[Stage] | None:
        """The stages once each is loaded; those that are not are asked for."""
        stages: list[Stage] = []
        for seat in seats:
            member = self._members[PeerId(str(seat.peer))]
            config = self._fitting_config(seat)
            if config in member.loaded:
                stages.append(Stage(config, member.peer_id, member.boot, member.loaded[config]))
            elif config not in member.asked:
                member.ask(Load(config=config))
            if config in member.refused:
                member.blame(member.refused[config])
                self._placer.reject(seats)
        return stages if len(stages) == len(seats) and self._agree(stages) else None

    def _agree(self, stages: list[Stage]) -> bool:
        """Whether all compute in the numerics of the first, as far as they can: else they are asked to."""
        self._numerics = self._numerics or stages[0].info.numerics
        return all(stage.config.numerics or stage.info.numerics == self._numerics for stage in stages)

    async def _begin_epoch(self, stages: list[Stage]) -> bool:
        """Fence the stages, and send what is not committed. False where one was lost meanwhile."""
        held = [self._stages.index(stage) if stage in self._stages else None for stage in stages]
        infos = [stage.info for stage in stages]
        if self._log is None:
            self._info = merge(infos)
            max_tokens = self._whole.max_num_batched_tokens
            self._log = StepLog(len(stages), self._info.num_blocks, max_tokens, epoch=time.time_ns() // 1_000_000)
        assert self._info is not None
        self._unsent = self._log.begin_epoch(held)
        self._stages = stages
        self._fence(stages)
        give_up_s = time.monotonic() + _FENCE_TIMEOUT_S
        while not all(self._members[stage.peer_id].fenced >= self._log.epoch for stage in stages):
            if self._blame_lost() or time.monotonic() > give_up_s:
                return False
            await self._members.wait_for_change(_LOOK_S)
        self._is_serving = True
        self._send(self._unsent)
        self._unsent = []
        if not self.ready.done():
            self.ready.set_result(self._info)
        return True

    def _fence(self, stages: list[Stage]) -> None:
        assert self._log is not None
        assert self._info is not None
        for number, stage in enumerate(stages):
            successor = stages[number + 1].peer_id if number + 1 < len(stages) else None
            self._members[stage.peer_id].send(
                Fence(
                    epoch=self._log.epoch,
                    config=stage.config,
                    number=number,
                    num_blocks=self._info.num_blocks,
                    predecessor=stages[number - 1].peer_id if number else None,
                    successor=None if successor is None else self._members[successor].endpoint,
                )
            )

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
        self._have_forgotten()
        while self._better() is None:
            if self._blame_lost():
                return True
            self._load_spares()
            await self._members.wait_for_change(_LOOK_S)
        return False

    def _better(self) -> list[Seat] | None:
        """The seats of a better plan, once its peers have loaded their layers; they are asked to."""
        seats, present = self._placer.better, self._present()
        if seats is None or seats == self._kept_seats() or not all(seat.peer in present for seat in seats):
            return None
        refused = any(self._config(seat.layers) in self._members[PeerId(str(seat.peer))].refused for seat in seats)
        if refused:  # which is no fault of what its peers serve now
            self._placer.reject(seats)
            return None
        return seats if self._loaded(seats) is not None else None

    def _blame_lost(self) -> bool:
        """Whether a stage is lost. Its peer does not get its seat again at once."""
        is_lost = False
        for stage in self._stages:
            reason = self._why_lost(stage)
            if reason is not None:
                is_lost = True
                logger.warning("%s is lost: it %s", stage.peer_id, reason)
                self._events.note("suspected", f"it {reason}", stage.peer_id)
                self._members[stage.peer_id].blame(reason)
        return is_lost

    def _why_lost(self, stage: Stage) -> str | None:
        member = self._members[stage.peer_id]
        if not member.is_connected:
            return "has gone"
        if member.boot != stage.boot:
            return "was started anew"
        if member.silent_s > self._silence_s:
            return f"has been silent for {member.silent_s * 1000:.0f} ms"
        return None if member.trouble is None else f"is in trouble: {member.trouble}"

    def _have_forgotten(self) -> None:
        """Have peers give back the memory of layers that this pipeline has no use for."""
        seated = {stage.peer_id: [stage.config] for stage in self._stages}
        for member in self._members.connected():
            member.keep(seated.get(member.peer_id, self._configs()))

    def _load_spares(self) -> None:
        """Have peers without a seat load all stages, to take a lost one's place at once."""
        seated = {stage.peer_id for stage in self._stages}
        for member in self._members.connected():
            if member.peer_id not in seated:
                for config in self._configs():
                    if config not in member.asked:
                        member.ask(Load(config=config))

    def _configs(self) -> list[StageConfig]:
        """The stages as a peer would have to load them that takes the place of another."""
        return [self._config((stage.config.begin, stage.config.end)) for stage in self._stages]
