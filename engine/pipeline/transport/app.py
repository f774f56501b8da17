"""The ASGI application of a coordinator or a peer: a few POSTs and one stream, each for callers that are known.

A caller is known by the client certificate that TLS has verified, or where there is no TLS by its ticket.
"""

import contextlib
import logging
from asyncio import CancelledError, Queue, create_task
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from distllm.engine.pipeline.security.peer_id import InvalidPeerId, PeerId, peer_id_of
from distllm.engine.pipeline.security.ticket import TicketCheck, TicketRefused

logger = logging.getLogger("distllm.pipeline")

PUT_OUT = 410
"""The status for a caller that was put out of the cluster: it need not call again."""

TICKET_HEADER = "x-distllm-ticket"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a status of HTTP and its body; where it refuses, a sentence that says why."""

    status: int = 200
    body: bytes = b""

    @classmethod
    def refusal(cls, status: int, reason: str) -> "Reply":
        return cls(status, reason.encode())


Outbound = Queue[bytes | None]
"""What goes down a stream; None ends it."""
Post = Callable[[PeerId | None, bytes], Awaitable[Reply]]
Stream = Callable[[PeerId], Outbound]
Identify = Callable[[Scope], PeerId | None]
"""Who calls; None for a stranger. Raises TicketRefused."""


def certified_caller(scope: Scope) -> PeerId | None:
    """By the certificate of the connection."""
    chain = (scope.get("extensions") or {}).get("tls", {}).get("client_cert_chain") or ()
    try:
        return peer_id_of(next(iter(chain))) if chain else None
    except InvalidPeerId:
        return None


def ticketed_caller(check: TicketCheck) -> Identify:
    """By the ticket that comes with each call."""

    def identify(scope: Scope) -> PeerId | None:
        tickets = [value for name, value in scope["headers"] if name == TICKET_HEADER.encode()]
        return check.caller(tickets[0].decode("latin-1"), datetime.now(UTC)) if tickets else None

    return identify


@dataclass(frozen=True, slots=True)
class PeerApp:
    """Routes by path. `open_posts` answer callers without a certificate too, who are None.

    Callers that were put out of the cluster are refused everywhere.
    `streams` send what is put in the queue that they return; `on_stream_end` hears of each queue whose caller left.
    """

    max_body_bytes: int
    posts: dict[str, Post]
    open_posts: dict[str, Post]
    streams: dict[str, Stream]
    on_stream_end: Callable[[PeerId, Outbound], None] = lambda *_: None
    identify: Identify = certified_caller
    is_removed: Callable[[PeerId], bool] = lambda _: False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        try:
            caller = self.identify(scope)
        except TicketRefused as refusal:
            logger.warning("a caller was refused: %s", refusal)
            await _answer(send, Reply.refusal(403, str(refusal)))
            return
        if caller is not None and self.is_removed(caller):
            logger.warning("%s was refused: it was put out of the cluster", caller)
            await _answer(
                send, Reply.refusal(PUT_OUT, f"{caller} was put out of the cluster: join it with a new token")
            )
        elif caller is None and path not in self.open_posts:
            await _answer(send, Reply.refusal(403, "this needs a certificate of the cluster: join it with a token"))
        elif path in self.streams and caller is not None:
            await self._stream(self.streams[path], caller, receive, send)
        elif (post := self.posts.get(path) or self.open_posts.get(path)) is not None:
            await _answer(send, await self._post(post, caller, receive))
        else:
            await _answer(send, Reply.refusal(404, f"there is no {path}"))

    async def _post(self, post: Post, caller: PeerId | None, receive: Receive) -> Reply:
        body = await _read(receive, self.max_body_bytes)
        if body is None:
            limit = f"{self.max_body_bytes >> 20} MiB"
            logger.warning("%s was refused a message of more than %s", caller or "a stranger", limit)
            return Reply.refusal(413, f"the message is larger than network.max_message_size_mb allows: {limit}")
        try:
            return await post(caller, body)
        except Exception as error:
            logger.exception("a message of %s failed", caller)
            return Reply.refusal(500, f"{type(error).__name__}: {error}")

    async def _stream(self, stream: Stream, caller: PeerId, receive: Receive, send: Send) -> None:
        outbound = stream(caller)

        async def end_with_caller() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            outbound.put_nowait(None)

        watching = create_task(end_with_caller())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (piece := await outbound.get()) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watching.cancel()
            with contextlib.suppress(CancelledError):
                await watching
            self.on_stream_end(caller, outbound)


async def _read(receive: Receive, max_bytes: int) -> bytes | None:
    """The body; None where it is too large."""
    pieces: list[bytes] = []
    num_bytes, has_more = 0, True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        pieces.append(message.get("body", b""))
        num_bytes += len(pieces[-1])
        if num_bytes > max_bytes:
            return None
        has_more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _answer(send: Send, reply: Reply) -> None:
    headers = [(b"content-length", str(len(reply.body)).encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
