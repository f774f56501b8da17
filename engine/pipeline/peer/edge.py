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

_SILENCE_S, _LEAST_BYTES_PER_S = 2.0, 0.5e6
"""A stage acknowledges a step when it has come, before it computes: one that takes longer is cut off."""

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
        if self.is_relayed:  # the coordinator waits for the acknowledgement, and finds out
            await deliver(client, RELAY_PATH, frame, is_wanted, on_unreachable)
        else:
            timeout_s = _SILENCE_S + len(frame) / _LEAST_BYTES_PER_S
            await deliver(client, STEP_PATH, frame, is_wanted, on_unreachable, timeout_s)

    async def close(self) -> None:
        await self.decode.close()
        await self.bulk.close()


class Edges:
    """Makes edges. That of the present epoch serves the next one too, where it leads the same way."""

    def __init__(self, coordinator: Address, connect: Connect) -> None:
        self._coordinator = coordinator
        self._connect = connect
        self._present: Edge | None = None
        self._is_lasting = True

    async def to_successor(self, fence: Fence) -> Edge | None:
        """The edge for the epoch of `fence`, None for the last stage. Raises Unreachable."""
        end = fence.successor
        if end is None:
            return None
        successor = PeerId(end.peer_id)
        address = self._coordinator if fence.is_relayed else Address(successor, end.host, end.port)
        known = self._present
        if (
            known is not None
            and self._is_lasting
            and (known.successor, known.decode.address) == (successor, address)
        ):
            return known
        return Edge(successor, await self._connect(address), await self._connect(address), fence.is_relayed)

    def keep(self, edge: Edge | None) -> Edge | None:
        """The epoch of `edge` has begun; the edge that is not used any more is given back, to be closed."""
        before, self._present, self._is_lasting = self._present, edge, True
        return None if before is edge else before

    def forget(self) -> None:
        """Let the next epoch connect anew."""
        self._is_lasting = False
