"""What each stage of an epoch is told of its place in it. Pure."""

from collections.abc import Callable, Sequence

from distllm.engine.pipeline.coordinator.routes import Route
from distllm.engine.pipeline.coordinator.stage import Stage
from distllm.engine.pipeline.messages import Endpoint, Fence
from distllm.engine.pipeline.security.peer_id import PeerId

_NO_ROUTE = Route()


def fences(
    epoch: int,
    num_blocks: int,
    stages: Sequence[Stage],
    routes: Sequence[Route],
    endpoint_of: Callable[[PeerId], Endpoint | None],
) -> list[Fence]:
    """One for each stage, to which the route of the same number leads."""
    before = [None, *stages[:-1]]
    after = [*stages[1:], None]
    onward = [*routes[1:], _NO_ROUTE]
    return [
        Fence(
            epoch=epoch,
            config=stage.config,
            number=number,
            num_blocks=num_blocks,
            predecessor=predecessor.peer_id if predecessor is not None and route.is_direct else None,
            successor=None if successor is None else endpoint_of(successor.peer_id),
            codec_in=route.codec,
            codec_out=way_on.codec,
            is_relayed=not way_on.is_direct,
        )
        for number, (stage, route, predecessor, successor, way_on) in enumerate(
            zip(stages, routes, before, after, onward, strict=True)
        )
    ]
