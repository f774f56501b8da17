"""A peer's part in the survey: probes its links one after the other when the coordinator asks."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from distllm.engine.pipeline.measuring.link_timing import LinkTimer
from distllm.engine.pipeline.messages import Probed
from distllm.engine.pipeline.patience import Patience
from distllm.engine.pipeline.placement.measurements import Link, PeerId
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable

logger = logging.getLogger("distllm.pipeline")

Connect = Callable[[Address], Awaitable[Http2Client]]
"""A client of its own, which is closed here. Raises Unreachable."""


async def probe_links(
    here: str, coordinator: Address | None, ends: Sequence[Address], connect: Connect, patience: Patience
) -> Probed:
    """The ways from `here` to `ends`, and to the coordinator and back unless that is None."""
    links: list[Link] = []
    unreachable: dict[str, str] = {}
    for end in [*([] if coordinator is None else [coordinator]), *ends]:
        probe = partial(_probed, PeerId(here), end, connect, both_ways=end is coordinator)
        try:
            links += await patience.insist(probe)
        except (Unreachable, ValueError) as error:
            logger.warning("the link to %s cannot be used: %s", end.peer_id, error)
            unreachable[end.peer_id] = str(error)
    return Probed(links=tuple(links), unreachable=unreachable)


async def _probed(here: PeerId, end: Address, connect: Connect, *, both_ways: bool) -> list[Link]:
    client = await connect(end)
    try:
        timer = LinkTimer(client, here, PeerId(end.peer_id))
        there = await timer.time_sending()
        return [there, await timer.time_receiving()] if both_ways else [there]
    finally:
        await client.close()
