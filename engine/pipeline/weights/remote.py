"""Asks one machine for manifests and weights."""

from collections.abc import Sequence

import msgspec

from distllm.engine.pipeline.messages import Endpoint, StageConfig
from distllm.engine.pipeline.transport.client import Http2Client, Unreachable
from distllm.engine.pipeline.weights.messages import (
    HOLDERS_PATH,
    MANIFEST_PATH,
    WEIGHTS_PATH,
    HoldersRequest,
    ManifestRequest,
    Span,
    WeightsRequest,
)

_decode_endpoints = msgspec.msgpack.Decoder(list[Endpoint])


class WeightsRefused(Exception):
    """A machine does not give what it was asked for; the message says which one, and why."""


class RemoteWeights:
    """What one machine has of the checkpoint with a fingerprint."""

    def __init__(self, client: Http2Client, fingerprint: str) -> None:
        self.peer_id = client.address.peer_id
        self.patience = client.patience
        self._client = client
        self._fingerprint = fingerprint

    async def manifest(self) -> bytes:
        """Encoded, and not checked. Raises Unreachable or WeightsRefused."""
        return await self._ask(MANIFEST_PATH, ManifestRequest(fingerprint=self._fingerprint))

    async def read(self, spans: Sequence[Span]) -> bytes:
        """All spans, one after the other. Raises Unreachable or WeightsRefused."""
        answer = await self._ask(WEIGHTS_PATH, WeightsRequest(fingerprint=self._fingerprint, spans=list(spans)))
        num_bytes = sum(span.num_bytes for span in spans)
        if len(answer) != num_bytes:
            raise WeightsRefused(f"{self.peer_id} sent {len(answer)} bytes of weights where {num_bytes} were due")
        return answer

    async def _ask(self, path: str, request: msgspec.Struct) -> bytes:
        status, answer = await self._client.post(path, msgspec.msgpack.encode(request), self.patience.timeout_s)
        if status != 200:
            raise WeightsRefused(f"{self.peer_id} gives no weights: {answer.decode(errors='replace')}")
        return answer


async def ask_holders(coordinator: Http2Client, config: StageConfig) -> list[Endpoint]:
    """Where peers are that have all of a stage's layers; none where the coordinator does not say."""
    request = HoldersRequest(fingerprint=config.fingerprint, begin=config.begin, end=config.end)
    try:
        body, timeout_s = msgspec.msgpack.encode(request), coordinator.patience.timeout_s
        status, answer = await coordinator.post(HOLDERS_PATH, body, timeout_s)
        return _decode_endpoints.decode(answer) if status == 200 else []
    except (Unreachable, msgspec.DecodeError):
        return []
