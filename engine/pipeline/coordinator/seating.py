"""Who gets which layers of a pipeline, and has loaded them: peers that serve, and those that stand by."""

from msgspec.structs import replace

from distllm.engine.numerics import kernels_of
from distllm.engine.pipeline.coordinator.arithmetic import Arithmetic
from distllm.engine.pipeline.coordinator.division import Seat, seat_peers
from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.coordinator.placer import Placer
from distllm.engine.pipeline.coordinator.stage import Stage
from distllm.engine.pipeline.coordinator.waiting import why_waiting
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.quantization.config import QuantizationConfig

_RETRY_S = 1.0
_LOADING_SILENCE_S = 10.0


class Seating:
    """Of the model `whole`. `stages` are those that serve, or served last, as the pipeline says; at first none.

    `waiting` says why nobody can be seated, where that is so.
    """

    def __init__(self, members: Members, whole: StageConfig, placer: Placer, silence_s: float) -> None:
        self._members = members
        self._placer = placer
        self._silence_s = silence_s
        self._arithmetic = Arithmetic(whole)
        self.stages: list[Stage] = []
        self.waiting: str | None = None

    @property
    def quantization(self) -> tuple[QuantizationConfig | None, ...] | None:
        """Of each layer; None until that is settled."""
        return self._arithmetic.quantization

    def settle(self) -> list[tuple[PeerId, str]]:
        """The stages serve: whoever takes over a layer is to compute it as they do.

        Which peers compute in another way than was done before, in words.
        """
        return self._arithmetic.settle(self.stages)

    async def seat(self) -> list[Stage]:
        """Stages whose peers are here and have loaded them."""
        tried: set[Seat] = set()
        while True:
            for seat in tried:
                if (reason := self._refusal(seat)) is not None:
                    self._members[PeerId(str(seat.peer))].blame(reason)  # for as long as it is believed
            seats = self._seats()
            if seats is not None and (stages := self._loaded(seats)) is not None:
                self.waiting = None
                return stages
            tried.update(seats or ())
            num_needed = 1 if self.stages else self._placer.num_needed
            self.waiting = why_waiting(
                self._members.connected(), len(self.present()), num_needed, seats, self._placer.waits_for
            )
            await self._members.wait_for_change(_RETRY_S)

    def better(self) -> list[Seat] | None:
        """The seats of a better plan, once its peers have loaded their layers; they are asked to."""
        seats, present = self._placer.better, self.present()
        if seats is None or seats == self.kept() or not all(seat.peer in present for seat in seats):
            return None
        if any(self._refusal(seat) for seat in seats):  # which is no fault of what its peers serve now
            return None
        return seats if self._loaded(seats) is not None else None

    def have_forgotten(self) -> None:
        """Have peers give back the memory of layers that this pipeline has no use for."""
        seated = {stage.peer_id: [stage.config] for stage in self.stages}
        for member in self._members.connected():
            member.keep(seated.get(member.peer_id, self._configs()))

    def load_spares(self) -> None:
        """Have peers without a seat load all stages, to take a lost one's place at once."""
        seated = {stage.peer_id for stage in self.stages}
        for member in self._members.connected():
            if member.peer_id not in seated:
                for config in self._configs():
                    member.have_loaded(config)

    def present(self) -> tuple[str, ...]:
        """Who may get a seat, in the order in which they joined; those in trouble where others are too few."""
        here = [member for member in self._members.connected() if self._is_heard(member)]
        fit = [member for member in here if member.trouble is None]
        if len(fit) < (len(self.stages) or self._placer.num_needed):
            fit = [member for member in here if member.trouble is None or self._may_be_needed(member)]
        return tuple(member.peer_id for member in fit)

    def kept(self) -> list[Seat]:
        return [Seat((stage.config.begin, stage.config.end), stage.peer_id) for stage in self.stages]

    def _seats(self) -> list[Seat] | None:
        """A better plan whose stages are loaded; else the same stages as before, with others in the places of those
        lost; else, where too few are left or nothing was served, a new plan. None while there is none.
        """
        if (better := self.better()) is not None:
            return better
        present = self.present()
        kept = self.kept()
        seats = seat_peers(kept, present, self._fitness) if kept else None
        return seats or self._placer.seats(present)

    def _may_be_needed(self, member: Member) -> bool:
        return member.standing.may_be_needed and member.silent_s <= self._silence_s

    def _is_heard(self, member: Member) -> bool:
        """One that loads is slow to answer."""
        return member.silent_s < max(self._silence_s, _LOADING_SILENCE_S)

    def _fitness(self, peer: str, layers: tuple[int, int]) -> int:
        """For a stage that was lost: 2 where a peer has loaded what gives the same bits, 1 where something else."""
        loaded = [it for it in self._members[PeerId(peer)].loaded.items() if (it[0].begin, it[0].end) == layers]
        return 2 if any(self._arithmetic.is_kept(*it) for it in loaded) else int(bool(loaded))

    def _refusal(self, seat: Seat) -> str | None:
        """Why the peer of a seat cannot load its layers."""
        return self._members[PeerId(str(seat.peer))].refusals.reason(self._config(seat))

    def _loaded(self, seats: list[Seat]) -> list[Stage] | None:
        """The stages once each is loaded; those that are not are asked for."""
        stages: list[Stage] = []
        for seat in seats:
            member = self._members[PeerId(str(seat.peer))]
            config = self._fitting_config(seat)
            if config in member.loaded:
                stages.append(Stage(config, member.peer_id, member.boot, member.loaded[config]))
            else:
                member.have_loaded(config)
        return stages if len(stages) == len(seats) and self._agree(stages) else None

    def _agree(self, stages: list[Stage]) -> bool:
        """Whether all compute in the order of sums of the first, as far as they can: else they are asked to."""
        wanted = self._arithmetic.kernels = self._arithmetic.kernels or kernels_of(stages[0].info.numerics)
        return all(stage.config.numerics or kernels_of(stage.info.numerics) == wanted for stage in stages)

    def _fitting_config(self, seat: Seat) -> StageConfig:
        """What the peer of a seat serves there, or has loaded for it in the right order of sums, or should."""
        if (present := self._present_config(seat)) is not None:
            return present
        wanted = self._config(seat)
        for config, info in self._members[PeerId(str(seat.peer))].loaded.items():
            is_alike = replace(config, numerics=wanted.numerics) == wanted
            if is_alike and kernels_of(info.numerics) == self._arithmetic.kernels:
                return config
        return wanted

    def _present_config(self, seat: Seat) -> StageConfig | None:
        """What the peer of a seat serves there already."""
        for stage in self.stages:
            if stage.peer_id == seat.peer and (stage.config.begin, stage.config.end) == seat.layers:
                return stage.config if stage.config in self._members[stage.peer_id].loaded else None
        return None

    def _config(self, seat: Seat) -> StageConfig:
        """As the peer of a seat would have to load its stage."""
        return self._arithmetic.config(seat.layers, self._members[PeerId(str(seat.peer))].wish)

    def _configs(self) -> list[StageConfig]:
        """The stages as a peer would have to load them that takes the place of another."""
        return [self._arithmetic.config((it.config.begin, it.config.end), None) for it in self.stages]
