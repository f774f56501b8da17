"""An edge has a connection for what is small and one for what is large, and stays while it leads the same way."""

from typing import cast

import pytest
from msgspec.structs import replace

from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import Endpoint, Fence
from distllm.engine.pipeline.peer.edge import RELAY_PATH, STEP_PATH, Edge, Edges
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.transport.bulk import BULK_BYTES
from distllm.engine.pipeline.transport.client import Address, Http2Client
from tests.engine.pipeline.coordinator.fake_peers import WHOLE

AT_COORDINATOR = Address(COORDINATOR, "10.0.0.1", 5555)


class Connection:
    """Keeps what is posted."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.posted: list[tuple[str, int]] = []
        self.is_closed = False

    async def post(self, path: str, body: bytes, _: float) -> tuple[int, bytes]:
        self.posted.append((path, len(body)))
        return Status.ACCEPTED, b""

    async def close(self) -> None:
        self.is_closed = True


class Machine:
    """A peer's edges, and the connections that were made for them."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.edges = Edges(AT_COORDINATOR, self._connect)

    async def _connect(self, address: Address) -> Http2Client:
        self.connections.append(Connection(address))
        return cast(Http2Client, self.connections[-1])

    async def begin(self, *, is_relayed: bool = False, successor: str | None = "b-1", port: int = 1) -> Edge | None:
        end = None if successor is None else Endpoint(peer_id=successor, host="10.0.0.2", port=port)
        edge = await self.edges.to_successor(replace(FENCE, successor=end, is_relayed=is_relayed))
        unused = self.edges.keep(edge)
        if unused is not None:
            await unused.close()
        return edge

    @property
    def num_open(self) -> int:
        return sum(not connection.is_closed for connection in self.connections)


FENCE = Fence(epoch=1, config=WHOLE, number=0, num_blocks=1, predecessor=None, successor=None)


@pytest.fixture
async def machine() -> Machine:
    return Machine()


async def send(edge: Edge | None, num_bytes: int) -> None:
    assert edge is not None
    await edge.deliver(bytes(num_bytes), lambda: True, lambda _: None)


async def test_what_is_large_does_not_go_where_what_is_small_does(machine: Machine) -> None:
    edge = await machine.begin()
    for num_bytes in (10, BULK_BYTES, BULK_BYTES - 1):
        await send(edge, num_bytes)
    decode, bulk = machine.connections
    assert decode.posted == [(STEP_PATH, 10), (STEP_PATH, BULK_BYTES - 1)]
    assert bulk.posted == [(STEP_PATH, BULK_BYTES)]
    assert decode.address == bulk.address == Address(PeerId("b-1"), "10.0.0.2", 1)


async def test_a_relayed_edge_leads_to_the_coordinator(machine: Machine) -> None:
    edge = await machine.begin(is_relayed=True)
    await send(edge, 10)
    assert edge is not None
    assert edge.successor == "b-1"
    assert machine.connections[0].posted == [(RELAY_PATH, 10)]
    assert {connection.address for connection in machine.connections} == {AT_COORDINATOR}


async def test_an_edge_stays_while_it_leads_the_same_way(machine: Machine) -> None:
    edge = await machine.begin()
    assert await machine.begin() is edge
    assert machine.num_open == 2


@pytest.mark.parametrize("change", [{"is_relayed": True}, {"successor": "c-1"}, {"port": 2}, {"successor": None}])
async def test_another_way_is_another_edge_and_the_first_is_given_back(
    machine: Machine, change: dict[str, str | int | None]
) -> None:
    edge = await machine.begin()
    other = await machine.begin(**change)  # type: ignore[arg-type]
    assert other is not edge
    assert machine.num_open == (0 if other is None else 2)


async def test_a_relayed_edge_to_another_successor_is_another_edge(machine: Machine) -> None:
    first = await machine.begin(is_relayed=True)
    second = await machine.begin(is_relayed=True, successor="c-1")
    assert first is not second
    assert second is not None
    assert second.successor == "c-1"


async def test_what_was_forgotten_stays_open_until_another_epoch_has_begun(machine: Machine) -> None:
    edge = await machine.begin()
    machine.edges.forget()
    assert machine.num_open == 2
    assert await machine.begin() is not edge
    assert machine.num_open == 2
