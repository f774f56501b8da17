"""uvicorn's HTTP/1.1 protocol, hardened: clients that leave are noticed whatever they sent ahead, slow requests
time out, the head has a limit, and errors of the protocol itself have the one shape of all errors."""

import array
import asyncio
import contextlib
import fcntl
import re
import termios
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from distllm.server.connection_limit import ConnectionLimit
from distllm.server.errors import HeadTooLarge, MalformedHttp, RequestTimeout, TooManyConnections, error_response
from distllm.server.old_http import close_delimited

SHUTDOWN_GRACE_S = 5
_LONGEST_BACKLOG = 2048
_OFFER = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """What one client may take of the server.

    A request's head must come within `head_s` of its first byte, its body within `body_s` and one second more for
    every `min_body_bytes_per_s`. `linger_s` is how long a refused client may go on sending and still read why.
    While a request is answered, at most `max_early_requests` more, with `max_early_bytes` of bodies, may come.
    A client that takes nothing of what waits to be sent for `write_s` has left.
    """

    max_connections: int = 768
    head_s: float = 20.0
    body_s: float = 30.0
    min_body_bytes_per_s: float = 1000.0
    linger_s: float = 5.0
    write_s: float = 120.0
    max_head_bytes: int = 64 * 1024
    max_early_requests: int = 16
    max_early_bytes: int = 256 * 1024


def http_config(app: FastAPI, settings: ConnectionSettings) -> uvicorn.Config:
    """How uvicorn serves the app.

    asyncio accepts a whole backlog in one go, before any connection can be closed: so it is kept below the number
    of descriptors that connections leave free.
    """
    protocol = partial(HttpProtocol, settings, ConnectionLimit(settings.max_connections))
    return uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], protocol),
        ws="none",
        backlog=min(_LONGEST_BACKLOG, max(1, settings.max_connections // 4)),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    uvicorn stops reading while a request waits behind the one being answered, and tells only the last one that the
    client has left; here reading goes on, within limits, and all are told. A client that closes its sending half
    counts as one that has left: the two cannot be told apart before something is sent.
    """

    def __init__(self, settings: ConnectionSettings, limit: ConnectionLimit, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._settings = settings
        self._limit = limit
        self._running: RequestResponseCycle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self._num_body_bytes = 0
        self._body_begun_s = 0.0
        self._is_in_head = True
        self._is_in_body = False
        self._is_lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._limit.admit(self):
            self._set_deadline(self._settings.head_s)
        else:
            transport.write(_whole_response(TooManyConnections()))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limit.forget(self)
        self._clear_deadline()
        self._clear_write_deadline()
        self._tell_that_client_left()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing(_num_unread(self.transport))

    def resume_writing(self) -> None:
        self._clear_write_deadline()
        super().resume_writing()

    def close(self) -> None:
        """End an idle connection, without waiting for a client that does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            return
        super().data_received(data if self._is_in_body else _without_offers(data))
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > self._settings.max_head_bytes:
                self._refuse(HeadTooLarge(self._settings.max_head_bytes))
        if self.pipeline:
            self._read_on()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._num_head_bytes = True, 0
        self._set_deadline(self._settings.head_s)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._is_in_head, self._is_in_body = False, True
        self._num_body_bytes, self._body_begun_s = 0, self.loop.time()
        self._set_deadline(self._settings.body_s)

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_in_body = False
        self._clear_deadline()
        if self._is_answering:
            self._limit.mark_busy(self)

    def on_response_complete(self) -> None:
        self._running = None
        super().on_response_complete()
        if self._is_answering:
            return
        self._limit.mark_idle(self)
        if self._is_in_body:
            self._linger()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        self._refuse(MalformedHttp())

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as HTTP/1.1, which needs no line in the log."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        fitting_app = app if cycle.scope["http_version"] == "1.1" else close_delimited(cycle, app)
        super()._start_asgi_task(cycle, self._closing_late(cycle, fitting_app))

    def _closing_late(self, cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
        """`app`, whose answer to half a request does not close the connection at once: the bytes still coming would
        turn the closing into a reset, and a reset can overtake the answer."""

        async def late_app(scope: Any, receive: Any, send: Any) -> None:
            async def send_late(message: Any) -> None:
                await send(message)
                if message["type"] == "http.response.start" and cycle is self.cycle and self._is_in_body:
                    cycle.keep_alive = True

            await app(scope, receive, send_late)

        return cast(ASGI3Application, late_app)

    @property
    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _cycles(self) -> Iterator[RequestResponseCycle]:
        """The request being answered and those behind it."""
        if self._running is not None:
            yield self._running
        yield from (cycle for cycle, _ in self.pipeline)

    def _tell_that_client_left(self) -> None:
        for cycle in self._cycles():
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()

    def _read_on(self) -> None:
        """Keep reading, so that a client that leaves is noticed; one that sends too much ahead is cut off."""
        num_bytes = sum(len(cycle.body) for cycle, _ in self.pipeline)
        if len(self.pipeline) > self._settings.max_early_requests or num_bytes > self._settings.max_early_bytes:
            self.transport.abort()
        else:
            self.flow.resume_reading()

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._on_deadline)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _watch_writing(self, num_waiting: int) -> None:
        self._write_deadline = self.loop.call_later(self._settings.write_s, self._on_write_deadline, num_waiting)

    def _clear_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _on_write_deadline(self, num_waited: int) -> None:
        """Cut off a client for which as much waits as did: nothing was added meanwhile, and nothing taken."""
        num_waiting = _num_unread(self.transport)
        if num_waiting < num_waited:
            self._watch_writing(num_waiting)
        else:
            self.transport.abort()

    def _on_deadline(self) -> None:
        extra_s = self._num_body_bytes / self._settings.min_body_bytes_per_s if self._is_in_body else 0.0
        left_s = self._body_begun_s + self._settings.body_s + extra_s - self.loop.time()
        if self._is_lingering:
            self.close()
        elif self._is_answering and self._is_in_body and left_s > 0:
            self._set_deadline(left_s)
        elif self._is_answering or self._num_head_bytes:
            self._refuse(RequestTimeout())
        else:
            self.close()

    def _refuse(self, error: Exception) -> None:
        """Answer with an error and close; where an answer has begun, only close."""
        if self._is_lingering or self.transport.is_closing():
            return
        if self._is_answering and self._running is not None and self._running.response_started:
            self.transport.close()
        else:
            self.transport.write(_whole_response(error))
            self._linger()
        self._tell_that_client_left()

    def _linger(self) -> None:
        """Close the sending half, and the rest once the client has had time to read what was sent."""
        if not self.transport.is_closing():
            self._is_lingering = True
            self.transport.write_eof()
            self._set_deadline(self._settings.linger_s)


def _num_unread(transport: asyncio.Transport) -> int:
    """Bytes that the client has not taken, those in the system's hands included where it tells."""
    count = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, count)
    return transport.get_write_buffer_size() + count[0]


def _without_offers(data: bytes) -> bytes:
    """The start of a request whose offers to upgrade are given another name: the parser would take its body for the
    other protocol's, and Java's client offers HTTP/2 with every request."""
    if b"pgrade:" not in data:
        return data
    head, end, rest = data.partition(b"\r\n\r\n")
    return _OFFER.sub(b"\r\nx-upgrade:", head) + end + rest


def _whole_response(error: Exception) -> bytes:
    response = error_response(error)
    response.headers["x-request-id"] = uuid.uuid4().hex
    response.headers["connection"] = "close"
    fields = b"".join(b"%s: %s\r\n" % field for field in response.raw_headers)
    return STATUS_LINE[response.status_code] + fields + b"\r\n" + bytes(response.body)
