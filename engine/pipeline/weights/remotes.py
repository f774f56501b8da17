"""Whom a peer asks for weights: other peers that have them take turns with the coordinator, which always does."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable
from distllm.engine.pipeline.weights.messages import Span
from distllm.engine.pipeline.weights.remote import RemoteWeights, WeightsRefused, ask_holders

logger = logging.getLogger("distllm.pipeline")

Connect = Callable[[Address], Awaitable[Http2Client]]


class Remotes:
    """The coordinator, and peers that can spare it some of the work for as long as they do."""

    def __init__(self, coordinator: RemoteWeights, peers: Sequence[RemoteWeights] = ()) -> None:
        self._coordinator = coordinator
        self._peers = list(peers)
        self._next = 0

    async def manifest(self) -> bytes:
        """The coordinator's, encoded and not checked. Raises CheckpointError."""
        return await self._insist(self._coordinator.manifest)

    async def read(self, spans: Sequence[Span], *, may_ask_peers: bool) -> bytes:
        """All spans, one after the other, not checked. Raises CheckpointError."""
        if may_ask_peers and (peer := self._turn()) is not None:
            try:
                return await peer.read(spans)
            except (Unreachable, WeightsRefused) as error:
                logger.warning("%s; asking others from now on", error)
                self._peers = [other for other in self._peers if other is not peer]
        return await self._insist(lambda: self._coordinator.read(spans))

    def _turn(self) -> RemoteWeights | None:
        """Whose turn it is; None for the coordinator, who takes turns with the peers."""
        turn = self._next % (len(self._peers) + 1)
        self._next += 1
        return None if turn == len(self._peers) else self._peers[turn]

    async def _insist(self, ask: Callable[[], Awaitable[bytes]]) -> bytes:
        """Ask the coordinator. Raises CheckpointError where it refuses, or does not answer in all attempts."""
        patience = self._coordinator.patience
        try:
            return await patience.insist(ask)
        except WeightsRefused as refusal:
            raise CheckpointError(str(refusal)) from None
        except Unreachable as error:
            raise CheckpointError(
                f"{error}; given up after {1 + patience.retry_attempts} attempts: see network.retry_attempts and "
                "network.timeout_seconds in the coordinator's cluster.yaml"
            ) from None


@asynccontextmanager
async def open_remotes(coordinator: Address, config: StageConfig, connect: Connect) -> AsyncIterator[Remotes]:
    """All that have what a stage needs, with connections of their own. Raises Unreachable."""
    async with AsyncExitStack() as clients:

        async def open_client(address: Address) -> Http2Client:
            client = await connect(address)
            clients.push_async_callback(client.close)
            return client

        first = await open_client(coordinator)
        peers = []
        for endpoint in await ask_holders(first, config):
            with suppress(Unreachable):
                peer = await open_client(Address(PeerId(endpoint.peer_id), endpoint.host, endpoint.port))
                peers.append(RemoteWeights(peer, config.fingerprint))
        yield Remotes(RemoteWeights(first, config.fingerprint), peers)
