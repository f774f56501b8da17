"""A server that streams counted tokens, or fails as it is told, for the load generator to measure."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class StubServer:
    """Streams `max_tokens` chunks a request. `failing` maps a request's number to what is done instead.

    No request is answered before `holds_until_under_way` have been under way at once.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.failing: dict[int, str] = {}
        self.sends_usage = True
        self.token_delay_s = 0.0
        self.num_under_way = 0
        self.most_under_way = 0
        self.holds_until_under_way = 0
        self._changed = threading.Condition()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def enter(self, body: dict[str, Any]) -> int:
        with self._changed:
            self.bodies.append(body)
            number = len(self.bodies) - 1
            self.num_under_way += 1
            self.most_under_way = max(self.most_under_way, self.num_under_way)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most_under_way >= self.holds_until_under_way, timeout=10)
            return number

    def leave(self) -> None:
        with self._changed:
            self.num_under_way -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply(200, {"object": "list", "data": [{"id": "stub"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                number = stub.enter(body)
                try:
                    match stub.failing.get(number):
                        case "refuse":
                            self._reply(429, {"error": {"message": "the queue is full"}})
                        case "cut":
                            self._start_stream()
                            self._event({"choices": [{"text": "a"}]})
                            self.close_connection = True
                        case "error":
                            self._start_stream()
                            self._event({"error": {"message": "lost"}})
                            self._end_stream()
                        case _:
                            self._stream(body)
                except OSError:
                    self.close_connection = True
                finally:
                    stub.leave()

            def _stream(self, body: dict[str, Any]) -> None:
                self._start_stream()
                for _ in range(body["max_tokens"]):
                    time.sleep(stub.token_delay_s)
                    self._event({"choices": [{"text": "a", "index": 0, "finish_reason": None}]})
                self._event({"choices": [{"text": "", "index": 0, "finish_reason": "length"}]})
                if stub.sends_usage:
                    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
                    self._event({"choices": [], "usage": usage})
                self._piece(b"data: [DONE]\n\n")
                self._end_stream()

            def _reply(self, status: int, value: object) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _start_stream(self) -> None:
                self.send_response(200)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()

            def _event(self, value: object) -> None:
                self._piece(b"data: " + json.dumps(value).encode() + b"\n\n")

            def _piece(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

            def _end_stream(self) -> None:
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        return Handler


@pytest.fixture
def stub() -> Iterator[StubServer]:
    stub = StubServer()
    yield stub
    stub.close()
