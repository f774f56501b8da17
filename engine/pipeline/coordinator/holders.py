"""Tells peers which others have weights that they need."""

import msgspec

from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.messages import Endpoint
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import Post, Reply
from distllm.engine.pipeline.weights.messages import HOLDERS_PATH, HoldersRequest

_decode_request = msgspec.msgpack.Decoder(HoldersRequest)


class Holders:
    """Answers by what `members` have loaded."""

    def __init__(self, members: Members) -> None:
        self._members = members

    @property
    def posts(self) -> dict[str, Post]:
        """For the coordinator's PeerApp."""
        return {HOLDERS_PATH: self._tell}

    async def _tell(self, caller: PeerId | None, body: bytes) -> Reply:
        try:
            request = _decode_request.decode(body)
        except msgspec.DecodeError as error:
            return Reply.refusal(400, f"malformed request: {error}")
        return Reply(200, msgspec.msgpack.encode(self._find(request, caller)))

    def _find(self, request: HoldersRequest, caller: PeerId | None) -> list[Endpoint]:
        """Of peers that have loaded a stage with all of these layers, other than the caller."""
        return [
            member.endpoint
            for member in self._members.connected()
            if member.peer_id != caller
            and member.endpoint is not None
            and any(
                stage.fingerprint == request.fingerprint
                and stage.begin <= request.begin
                and request.end <= stage.end
                for stage in member.loaded
            )
        ]
