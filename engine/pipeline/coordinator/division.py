"""Which peer gets which layers. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from distllm.engine.pipeline.placement.measurements import PeerId
from distllm.engine.pipeline.placement.plan import Plan, Stage

Layers = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Seat:
    """A stage's layers [begin, end) and the peer that serves it, None where nobody does."""

    layers: Layers
    peer: str | None


def divide_evenly(num_layers: int, num_stages: int) -> list[Layers]:
    """Contiguous ranges, whose lengths differ by one layer at most."""
    bounds = [num_layers * number // num_stages for number in range(num_stages + 1)]
    return list(pairwise(bounds))


def seat_peers(
    seats: Sequence[Seat], present: Sequence[str], fitness: Callable[[str, Layers], int]
) -> list[Seat] | None:
    """The same stages with a peer each: who has a seat keeps it; an empty one goes to the first of the fittest.

    None where there are fewer peers than stages.
    """
    kept = [Seat(seat.layers, seat.peer if seat.peer in present else None) for seat in seats]
    taken = {seat.peer for seat in kept}
    free = [peer for peer in present if peer not in taken]
    for number, seat in enumerate(kept):
        if seat.peer is None:
            if not free:
                return None
            best = max(free, key=lambda peer: fitness(peer, seat.layers))
            free.remove(best)
            kept[number] = Seat(seat.layers, best)
    return kept


def seats_of(plan: Plan) -> list[Seat]:
    """A plan's stages."""
    return [Seat((stage.begin, stage.end), stage.peer_id) for stage in plan.stages]


def plan_of(seats: Sequence[Seat]) -> Plan:
    """Of seats that are all taken."""
    return Plan(tuple(Stage(PeerId(str(seat.peer)), *seat.layers) for seat in seats))
