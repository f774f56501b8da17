"""A scripted HTTP server on loopback, and both clients behind one blocking face, so that a test holds both."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from distllm.clients import AsyncClient, Client


@dataclass
class Scripted:
    """One reply: status, headers, and the pieces of its body, each sent by itself."""

    status: int = 200
    pieces: tuple[bytes, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    is_endless: bool = False
    is_cut: bool = False


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class ScriptedServer:
    """Answers requests with `replies` in turn, the last one for ever, and remembers what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Scripted] = []
        self.seen: list[Seen] = []
        self.client_left = threading.Event()
        self.num_connections = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def answers(self, *pieces: bytes, status: int = 200, **how: Any) -> None:
        """Add a reply to the script."""
        self.replies.append(Scripted(status, pieces, **how))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def next_reply(self) -> Scripted:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server.num_connections += 1
                super().setup()

            def do_POST(self) -> None:
                size = int(self.headers.get("content-length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.seen.append(Seen(self.command, self.path, headers, body))
                self._answer(server.next_reply())

            do_GET = do_DELETE = do_POST  # noqa: N815

            def _answer(self, reply: Scripted) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.status != 204:  # which has no body
                    self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                try:
                    self._send(reply)
                except OSError:
                    server.client_left.set()
                self.close_connection = reply.is_cut

            def _send(self, reply: Scripted) -> None:
                for piece in reply.pieces:
                    self._send_piece(piece)
                while reply.is_endless:
                    self._send_piece(reply.pieces[-1])
                    threading.Event().wait(0.005)
                if not reply.is_cut and reply.status != 204:
                    self.wfile.write(b"0\r\n\r\n")

            def _send_piece(self, piece: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        return Handler


class BlockingAsyncClient:
    """An AsyncClient whose coroutines run to their end, and whose streams come as lists."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._client = AsyncClient(*args, **kwargs)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await method(*args, **kwargs)
            return [chunk async for chunk in result] if name.endswith("_stream") else result

        return lambda *args, **kwargs: self._runner.run(call(*args, **kwargs))

    def shut(self) -> None:
        self.close()
        self._runner.close()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client of either kind for a URL; `model` is "tiny" unless given."""
    opened: list[Any] = []

    def connect(url: str, **settings: Any) -> Any:
        kind = Client if request.param == "sync" else BlockingAsyncClient
        opened.append(kind(url, **({"model": "tiny"} | settings)))
        return opened[-1]

    yield connect
    for client in opened:
        client.shut() if isinstance(client, BlockingAsyncClient) else client.close()
