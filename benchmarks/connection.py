"""A frugal HTTP/1.1 client: it shares its processor with the server that it measures.

Bytes are kept with the time they came and read after the run. Connections are reused.
"""

import asyncio
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools


@dataclass(slots=True)
class Exchange:
    """One request and what came back. Times are of time.perf_counter(), in seconds.

    `pieces` are the body's bytes as they came. `failure` says why there is no whole reply.
    """

    sent_s: float
    status: int | None = None
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended_s: float | None = None
    failure: str | None = None

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class ConnectionPool:
    """Connections to one server; as many as there are requests under way."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{base_url!r} is not a server's address; write it as http://host:port")
        self._host, self._port = parts.hostname, parts.port or 80
        authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f"host: {parts.netloc}\r\ncontent-type: application/json\r\n{authorization}"
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, body: bytes, timeout_s: float) -> Exchange:
        """Send one request and wait for its whole reply. Failures are recorded in it, never raised."""
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}\r\n\r\n"
        exchange = Exchange(sent_s=time.perf_counter())
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connect()
                await connection.exchange(head.encode() + body, exchange)
        except TimeoutError:
            exchange.failure = f"no whole reply within {timeout_s:g} s"
        except (OSError, httptools.HttpParserError) as error:
            exchange.failure = f"{type(error).__name__}: {error}"
        if connection is not None:
            self._put_back(connection, is_reusable=exchange.failure is None)
        return exchange

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connect(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection

    def _put_back(self, connection: "_Connection", is_reusable: bool) -> None:
        if is_reusable and connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. The `on_` methods are called by the parser."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._received_s = 0.0
        self.is_open = False

    async def exchange(self, request: bytes, exchange: Exchange) -> None:
        """Raises OSError where the connection breaks, HttpParserError where the reply is not HTTP."""
        assert self._transport is not None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._received_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._finish(exc or ConnectionResetError("the server closed the connection before the reply's end"))

    def on_headers_complete(self) -> None:
        assert self._exchange is not None
        self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        assert self._exchange is not None
        self._exchange.pieces.append((self._received_s, body))

    def on_message_complete(self) -> None:
        assert self._exchange is not None
        self._exchange.ended_s = self._received_s
        self.is_open = self.is_open and self._parser.should_keep_alive()
        self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
