"""The way from a stage to the next: two connections, so that no decode step queues behind the chunk of a prompt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from distllm.engine.pipeline.delivery import deliver
from distllm.engine.pipeline.messages import Fence
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.bulk import is_bulk
from distllm.engine.pipeline.transport.client import Address, Http2Client

STEP_PATH = "/v1/step"
RELAY_PATH = "/v1/relay"

Connect = Callable[[Address], Awaitable[Http2Client]]


@dataclass(frozen=True, slots=True)
class Edge:
    """To `successor`, or where it `is_relayed` to the coordinator, who passes on what is sent."""

    successor: PeerId
    decode: Http2Client
    bulk: Http2Client
    is_relayed: bool = False

    async def deliver(
        self, frame: bytes, is_wanted: Callable[[], bool], on_unreachable: Callable[[str], None]
    ) -> None:
        """Raises Refused. `on_unreachable` hears of every attempt that came to nothing."""
        client = self.bulk if is_bulk(frame) else self.decode
        await deliver(client, RELAY_PATH if self.is_relayed else STEP_PATH, frame, is_wanted, on_unreachable)

    async def close(self) -> None:
        await self.decode.close()
        await self.bulk.close()


class Edges:
    """The edge of the present epoch, which the next one keeps where it leads the same way."""

    def __init__(self, coordinator: Address, connect: Connect) -> None:
        self._coordinator = coordinator
        self._connect = connect
        self._edge: Edge | None = None
        self._unused: list[Edge] = []

    async def begin(self, fence: Fence) -> Edge | None:
        """The edge of the epoch that `fence` begins, None for the last stage. Raises Unreachable."""
        edge = await self._edge_of(fence)
        if self._edge is not None and self._edge is not edge:
            self._unused.append(self._edge)
        self._edge = edge
        return edge

    def forget(self) -> None:
        """Let the next epoch connect anew."""
        if self._edge is not None:
            self._unused.append(self._edge)
        self._edge = None

    async def close_unused(self) -> None:
        """Close the edges of earlier epochs, once nothing of these is sent any more."""
        unused, self._unused = self._unused, []
        for edge in unused:
            await edge.close()

    async def _edge_of(self, fence: Fence) -> Edge | None:
        end = fence.successor
        if end is None:
            return None
        successor = PeerId(end.peer_id)
        address = self._coordinator if fence.is_relayed else Address(successor, end.host, end.port)
        known = self._edge
        if known is not None and (known.successor, known.decode.address) == (successor, address):
            return known
        decode, bulk = await self._connect(address), await self._connect(address)
        return Edge(successor, decode, bulk, fence.is_relayed)
