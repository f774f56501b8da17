"""Gives out manifests and weights to machines of the cluster: the coordinator's, and what a peer has of them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import Post, Reply
from distllm.engine.pipeline.weights.messages import (
    MANIFEST_PATH,
    WEIGHTS_PATH,
    ManifestRequest,
    Span,
    WeightsRequest,
)
from distllm.engine.pipeline.weights.tensor_place import TensorPlace

_decode_manifest_request = msgspec.msgpack.Decoder(ManifestRequest)
_decode_weights_request = msgspec.msgpack.Decoder(WeightsRequest)


@dataclass(frozen=True, slots=True)
class Holding:
    """What is here of a checkpoint: its encoded manifest, and some or all of its tensors."""

    manifest: bytes
    places: Mapping[str, TensorPlace]


class WeightSource:
    """Answers from what `find_holding` finds of a fingerprint, None for nothing; at most `max_bytes` at once."""

    def __init__(self, find_holding: Callable[[str], Holding | None], max_bytes: int) -> None:
        self._find_holding = find_holding
        self._max_bytes = max_bytes

    @property
    def posts(self) -> dict[str, Post]:
        """For a PeerApp, which lets callers with a certificate alone come so far."""
        return {MANIFEST_PATH: self._tell_manifest, WEIGHTS_PATH: self._read}

    async def _tell_manifest(self, _: PeerId | None, body: bytes) -> Reply:
        try:
            request = _decode_manifest_request.decode(body)
        except msgspec.DecodeError as error:
            return Reply.refusal(400, f"malformed request: {error}")
        holding = self._find_holding(request.fingerprint)
        return _unknown(request.fingerprint) if holding is None else Reply(200, holding.manifest)

    async def _read(self, _: PeerId | None, body: bytes) -> Reply:
        try:
            request = _decode_weights_request.decode(body)
        except msgspec.DecodeError as error:
            return Reply.refusal(400, f"malformed request: {error}")
        holding = self._find_holding(request.fingerprint)
        if holding is None:
            return _unknown(request.fingerprint)
        if (refusal := self._check(holding, request.spans)) is not None:
            return refusal
        try:
            return Reply(200, await asyncio.to_thread(_read_spans, holding.places, request.spans))
        except CheckpointError as error:
            return Reply.refusal(500, str(error))

    def _check(self, holding: Holding, spans: Sequence[Span]) -> Reply | None:
        """Why the spans are not given out."""
        num_bytes = sum(span.num_bytes for span in spans)
        if num_bytes > self._max_bytes:
            return Reply.refusal(413, f"{num_bytes} bytes were asked for; a message has at most {self._max_bytes}")
        for span in spans:
            place = holding.places.get(span.name)
            if place is None:
                return Reply.refusal(404, f"there is no tensor {span.name} here")
            if span.offset + span.num_bytes > place.tensor.num_bytes:
                return Reply.refusal(
                    416,
                    f"{span.name} has {place.tensor.num_bytes} bytes, {span.num_bytes} from {span.offset} on were "
                    "asked for",
                )
        return None


def _unknown(fingerprint: str) -> Reply:
    return Reply.refusal(404, f"there is no model with the fingerprint {fingerprint[:12]}... here")


def _read_spans(places: Mapping[str, TensorPlace], spans: Sequence[Span]) -> bytes:
    return b"".join(places[span.name].read(span.offset, span.num_bytes) for span in spans)
