"""Why no pipeline can run at present, in words for the operator. Pure."""

from collections.abc import Sequence

from distllm.engine.pipeline.coordinator.division import Seat
from distllm.engine.pipeline.coordinator.members import Member


def why_waiting(
    connected: Sequence[Member], num_fit: int, num_needed: int, seats: Sequence[Seat] | None, waits_for: str
) -> str:
    """`seats` are taken but not loaded; None where there is no plan, which `waits_for` something.

    That is told where `num_fit` of the connected peers are not too few for any plan.
    """
    if seats is not None:
        loading = ", ".join(f"{seat.peer} [{seat.layers[0]}, {seat.layers[1]})" for seat in seats)
        return f"layers are being loaded: {loading}"
    if num_fit >= num_needed:
        return f"no plan yet: waiting for {waits_for}"
    troubles = [f"; {member.peer_id}: {member.trouble}" for member in connected if member.trouble is not None]
    return f"{num_fit} of {num_needed} needed peers can serve{''.join(troubles)}"
