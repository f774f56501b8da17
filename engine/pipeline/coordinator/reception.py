"""What the coordinator answers to peers: joining, renewal, links and reports."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from distllm.engine.pipeline.coordinator.events import EventLog
from distllm.engine.pipeline.coordinator.listeners import Listeners
from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.messages import (
    BULK_PATH,
    CONTROL,
    LINK_PATH,
    Beat,
    EdgeDown,
    Fenced,
    FenceFailed,
    Hello,
    Loaded,
    LoadFailed,
    Loading,
    Measured,
    MeasureFailed,
    Probed,
    Received,
    Removed,
    Result,
    StageLost,
    ToCoordinator,
    Welcome,
)
from distllm.engine.pipeline.peer.expiry import EXPIRED_PATH
from distllm.engine.pipeline.peer.joining import JoinAnswer, JoinRequest
from distllm.engine.pipeline.peer.mismatch import MISMATCH_PATH, explain_mismatch
from distllm.engine.pipeline.peer.version import PROTOCOL_VERSION
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.host import InvalidHost
from distllm.engine.pipeline.security.join_token import JoinRefused
from distllm.engine.pipeline.security.peer_id import COORDINATOR, InvalidPeerId, PeerId, parse_peer_id
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.engine.pipeline.security.signing_request import InvalidSigningRequest
from distllm.engine.pipeline.security.state_dir import ClusterStateError
from distllm.engine.pipeline.security.ticket import TicketCheck
from distllm.engine.pipeline.security.token_store import TokenStore
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.pipeline.transport.app import Outbound, PeerApp, Post, Reply, certified_caller, ticketed_caller
from distllm.engine.pipeline.wire.frame import decode_frame
from distllm.engine.pipeline.wire.malformed_frame import MalformedFrame, OtherKind

logger = logging.getLogger("distllm.pipeline")

_decode_report = msgspec.msgpack.Decoder(ToCoordinator)
_decode_join = msgspec.msgpack.Decoder(JoinRequest)
_NUM_ID_DIGITS = 4


class Reception:
    """Keeps `members` true to what peers say, and tells `listeners`.

    `why_refused` knows of peers that are of no use here.
    """

    def __init__(
        self,
        authority: ClusterAuthority,
        tokens: TokenStore,
        members: Members,
        settings: ClusterSettings,
        listeners: Listeners,
        events: EventLog,
        removed: RemovedPeers,
        why_refused: Callable[[Hello], str | None] = lambda _: None,
    ) -> None:
        self._authority = authority
        self._tokens = tokens
        self._members = members
        self._settings = settings
        self._listeners = listeners
        self._events = events
        self._removed = removed
        self._told_removed = removed.current()
        self._why_refused = why_refused

    def app(self, other_posts: Mapping[str, Post]) -> PeerApp:
        """With `other_posts` for callers that are known. Without encryption these are known by their tickets."""
        is_encrypted = self._settings.is_encrypted

        async def note_mismatch(_: PeerId | None, __: bytes) -> Reply:
            mistaken, setting = ("does not encrypt", "true") if is_encrypted else ("encrypts", "false")
            logger.warning("a machine was refused that %s: network.encryption is %s", mistaken, setting)
            return explain_mismatch(is_encrypted=is_encrypted)

        tickets = ticketed_caller(TicketCheck(self._authority.certificate_pem, COORDINATOR))
        return PeerApp(
            self._settings.max_message_bytes,
            posts={"/v1/report": self._report, "/v1/renew": self._renew, **other_posts},
            open_posts={
                "/v1/authority": self._tell_authority,
                "/v1/join": self._join,
                MISMATCH_PATH: note_mismatch,
                EXPIRED_PATH: self._note_expired,
            },
            streams={LINK_PATH: self._open_link, BULK_PATH: self._open_bulk},
            on_stream_end=self._close_link,
            identify=certified_caller if is_encrypted else tickets,
            is_removed=self._is_removed,
        )

    async def _tell_authority(self, _: PeerId | None, __: bytes) -> Reply:
        return Reply(200, self._authority.certificate_pem)

    async def _join(self, _: PeerId | None, body: bytes) -> Reply:
        """A certificate for whoever brings a token. A request that is refused costs no token."""
        try:
            request = _decode_join.decode(body)
            peer_id = self._new_id(request.name)
            now = datetime.now(UTC)
            certificate = self._authority.issue(request.csr_pem, peer_id, request.hosts, now)
            await asyncio.to_thread(self._tokens.redeem, request.token, now)
        except JoinRefused as refusal:
            logger.warning("a machine was refused: %s", refusal)
            self._events.note("refused", str(refusal))
            return Reply.refusal(403, str(refusal))
        except (msgspec.DecodeError, InvalidSigningRequest, InvalidPeerId, InvalidHost) as error:
            return Reply.refusal(400, str(error))
        logger.info("%s joined the cluster", peer_id)
        self._events.note("joined", f"as {request.name}", peer_id)
        return Reply(200, msgspec.msgpack.encode(JoinAnswer(certificate_pem=certificate)))

    async def _note_expired(self, _: PeerId | None, body: bytes) -> Reply:
        """A machine says which peer it was."""
        try:
            peer_id = parse_peer_id(body.decode(errors="replace"))
        except InvalidPeerId as error:
            return Reply.refusal(400, str(error))
        logger.warning("%s was refused: its certificate has expired", peer_id)
        self._events.note("refused", "its certificate has expired", peer_id)
        return Reply()

    def _new_id(self, name: str) -> PeerId:
        """None of a peer that was put out. Raises InvalidPeerId."""
        while True:
            peer_id = parse_peer_id(f"{name}-{secrets.token_hex(_NUM_ID_DIGITS // 2)}")
            if not self._is_removed(peer_id):
                return peer_id

    async def _renew(self, caller: PeerId | None, body: bytes) -> Reply:
        assert caller is not None
        try:
            request = _decode_join.decode(body)
            certificate = self._authority.issue(request.csr_pem, caller, request.hosts, datetime.now(UTC))
        except (msgspec.DecodeError, InvalidSigningRequest, InvalidHost) as error:
            return Reply.refusal(400, str(error))
        return Reply(200, msgspec.msgpack.encode(JoinAnswer(certificate_pem=certificate)))

    def _open_link(self, caller: PeerId) -> Outbound:
        member = self._members[caller]
        outbound = member.begin_link()
        settings = self._settings
        member.send(
            Welcome(
                version=PROTOCOL_VERSION,
                beat_s=settings.beat_s,
                patience=settings.patience,
                removed=self._told_removed,
            )
        )
        return outbound

    def _open_bulk(self, caller: PeerId) -> Outbound:
        return self._members[caller].begin_bulk()

    def _close_link(self, caller: PeerId, outbound: Outbound) -> None:
        member = self._members[caller]
        if outbound in (member.outbound, member.bulk):
            member.end_link()
            logger.info("%s is gone", caller)
            self._events.note("gone", "its link has ended", caller)
            self._members.changed.set()

    async def _report(self, caller: PeerId | None, body: bytes) -> Reply:
        assert caller is not None
        try:
            frame = decode_frame(body, self._settings.max_message_bytes)
            if frame.kind != CONTROL:
                raise OtherKind(frame.kind, "report")
            message = frame.header(_decode_report)
        except MalformedFrame as error:
            logger.warning("%s sent what is no report: %s", caller, error)
            return Reply.refusal(400, str(error))
        member = self._members[caller]
        member.heard_s = time.monotonic()
        return self._take(member, message)

    def _is_removed(self, peer_id: PeerId) -> bool:
        """Asked of every caller, so that whoever was put out is gone with the next beat of anybody."""
        try:
            removed = self._removed.current()
        except ClusterStateError as error:
            logger.error("nobody else is put out: %s", error)
            removed = self._told_removed
        if removed != self._told_removed:
            self._told_removed = removed
            self._put_out(removed)
        return peer_id in removed

    def _put_out(self, removed: frozenset[PeerId]) -> None:
        for member in self._members.connected():
            if member.peer_id in removed:
                logger.warning("%s was put out of the cluster", member.peer_id)
                self._events.note("gone", "it was put out of the cluster", member.peer_id)
                member.dismiss("it was put out, with `distllm cluster remove` on the coordinator")
            else:
                member.send(Removed(peer_ids=removed))
        self._members.changed.set()

    def _take(self, member: Member, message: ToCoordinator) -> Reply:
        match message:
            case Result():
                fault = self._listeners.result(member.peer_id, message)
                return Reply() if fault is None else Reply.refusal(400, f"a result cannot be: this peer {fault}")
            case Beat():
                member.take_beat(message)
                return Reply()
            case Hello():
                return self._greet(member, message)
            case Loading():
                self._listeners.loading(member.peer_id, message)
                return Reply()
            case Loaded():
                member.loaded[message.config] = message.info
                logger.info("%s has loaded [%d, %d)", member.peer_id, message.config.begin, message.config.end)
            case LoadFailed():
                logger.error("%s cannot load its layers: %s", member.peer_id, message.reason)
                self._events.note("failed", f"cannot load its layers: {message.reason}", member.peer_id)
                member.refuse(message.config, message.reason)
            case StageLost():
                layers = f"[{message.config.begin}, {message.config.end})"
                logger.error("%s has lost %s: %s", member.peer_id, layers, message.reason)
                self._events.note("failed", f"has lost {layers}: {message.reason}", member.peer_id)
                member.lose(message.config)
            case Measured() | MeasureFailed() | Probed():
                self._listeners.measured(member, message)
            case Fenced():
                member.fenced = max(member.fenced, message.epoch)
            case FenceFailed(reason=reason):
                logger.error("%s cannot serve its layers: %s", member.peer_id, reason)
                self._events.note("failed", f"cannot serve its layers: {reason}", member.peer_id)
                member.blame(reason)
            case EdgeDown():
                return self._take_edge_down(member, message)
            case Received():
                self._listeners.received(member.peer_id, message)
                return Reply()
        self._members.changed.set()
        return Reply()

    def _take_edge_down(self, member: Member, message: EdgeDown) -> Reply:
        """Of the stage that follows, and of no other peer: it may lose its seat by that."""
        if not self._listeners.has_edge(member.peer_id, message.successor, message.epoch):
            logger.info("%s complains of %s, to which it does not send", member.peer_id, message.successor)
            return Reply.refusal(409, f"in epoch {message.epoch} this peer does not send to {message.successor}")
        if message.is_refusal:
            logger.warning("%s refuses the steps of %s: %s", message.successor, member.peer_id, message.reason)
            self._events.note("failed", f"refuses steps: {message.reason}", message.successor)
            self._members[PeerId(message.successor)].blame(message.reason)
        else:
            logger.warning("%s: %s", member.peer_id, message.reason)
            self._events.note("failed", f"cannot reach the next stage: {message.reason}", member.peer_id)
            self._listeners.measured(member, message)
        self._members.changed.set()
        return Reply()

    def _greet(self, member: Member, hello: Hello) -> Reply:
        if hello.version != PROTOCOL_VERSION:
            reason = f"the coordinator speaks version {PROTOCOL_VERSION} of the protocol, this peer {hello.version}"
            logger.warning("%s was refused: %s", member.peer_id, reason)
            self._events.note("refused", reason, member.peer_id)
            return Reply.refusal(400, reason)
        others = [other for other in self._members.connected() if other is not member]
        if (fault := self._why_refused(hello)) is not None:
            logger.warning("%s was refused: %s", member.peer_id, fault)
            self._events.note("refused", fault, member.peer_id)
            return Reply.refusal(403, fault)
        if len(others) >= (max_peers := self._settings.max_peers):
            self._events.note("refused", f"as many as {max_peers} peers are here", member.peer_id)
            return Reply.refusal(403, f"coordinator.max_workers is {max_peers}, and as many peers are here")
        was_here = hello.boot == member.boot
        member.begin_boot(hello.boot, hello.endpoint, hello.free_bytes)
        member.wish = hello.quantization
        self._members.changed.set()
        again = " again" if was_here else ""
        logger.info("%s is here%s, at %s:%d", member.peer_id, again, hello.endpoint.host, hello.endpoint.port)
        self._events.note("connected", f"at {hello.endpoint.host}:{hello.endpoint.port}", member.peer_id)
        return Reply()
