"""What a connection may do to the server: leave, send ahead, be slow, be many, talk no HTTP or an old one."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from fastapi import FastAPI

from distllm.server.http_protocol import ConnectionSettings, HttpProtocol
from tests.server.fake_engine import FakeEngine
from tests.server.live import eventually, served

ENDLESS: dict[str, Any] = {"model": "tiny", "prompt": "the fox", "max_tokens": 400}
HURRIED = ConnectionSettings(head_s=0.3, body_s=0.3, linger_s=0.3)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request(body: dict[str, Any], version: str = "1.1") -> bytes:
    content = json.dumps(body).encode()
    return (
        f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        + content
    )


@asynccontextmanager
async def connected(url: str, receive_bytes: int | None = None) -> AsyncIterator[Connection]:
    host, port = url.removeprefix("http://").split(":")
    client = socket.socket()
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=client)
    async with asyncio.timeout(15):
        yield reader, writer
    writer.close()


async def exchange(url: str, sent: bytes) -> bytes:
    """Send bytes as they are and read until the server closes."""
    async with connected(url) as (reader, writer):
        writer.write(sent)
        return await reader.read()


def error_of(answer: bytes, status: int) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head
    assert b"x-request-id" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
async def test_a_client_that_leaves_after_it_sent_a_second_request_ends_the_first(
    app: FastAPI, engine: FakeEngine, is_streamed: bool, is_late: bool
) -> None:
    engine.delay_s = 0.05
    first, second = request(ENDLESS | {"stream": is_streamed}), request(ENDLESS)
    async with served(app) as url:
        async with connected(url) as (_, writer):
            writer.write(first if is_late else first + second)
            await eventually(lambda: engine.num_live == 1)
            if is_late:
                writer.write(second)
                await asyncio.sleep(0.05)
        await eventually(lambda: engine.num_live == 0, timeout_s=2)
        assert len(engine.requests) == 1


async def test_a_client_that_stops_reading_a_stream_has_left(app: FastAPI, engine: FakeEngine) -> None:
    settings = ConnectionSettings(write_s=0.3)
    async with served(app, settings) as url, connected(url) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request(ENDLESS | {"stream": True, "n": 128}))
        await eventually(lambda: engine.num_live == 1)
        await eventually(lambda: engine.num_live == 0, timeout_s=10)
        assert engine.aborted


async def test_a_client_that_reads_a_stream_slowly_is_waited_for(app: FastAPI, engine: FakeEngine) -> None:
    """What its system and ours hold for it takes longer to read than it may take nothing."""
    settings = ConnectionSettings(write_s=0.5)
    async with served(app, settings) as url, connected(url, receive_bytes=16_384) as (reader, writer):
        writer.write(request(ENDLESS | {"stream": True, "n": 128}))
        await eventually(lambda: engine.num_live == 1)
        for _ in range(30):
            await asyncio.sleep(0.1)
            assert len(await reader.read(16_384)) > 1000
        assert not engine.aborted


async def test_requests_sent_ahead_are_answered_in_their_order(app: FastAPI) -> None:
    sent = b"".join(request(ENDLESS | {"max_tokens": count}) for count in (1, 2, 3))
    async with served(app) as url, connected(url) as (reader, writer):
        writer.write(sent)
        counts = []
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
            body = json.loads(await reader.readexactly(int(length.split(b":")[1])))
            counts.append(body["usage"]["completion_tokens"])
    assert counts == [1, 2, 3]


async def test_a_client_that_sends_too_much_ahead_is_cut_off(app: FastAPI, engine: FakeEngine) -> None:
    engine.delay_s = 0.05
    async with served(app, ConnectionSettings(max_early_requests=2)) as url:
        assert await exchange(url, request(ENDLESS) * 5) == b""
        await eventually(lambda: engine.num_live == 0)


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"]
)
async def test_what_is_no_http_gets_an_error_of_the_one_shape(app: FastAPI, sent: bytes) -> None:
    async with served(app) as url:
        assert error_of(await exchange(url, sent), 400)["code"] == "malformed_http"


async def test_garbage_behind_a_request_does_not_get_into_its_answer(app: FastAPI, engine: FakeEngine) -> None:
    engine.delay_s = 0.02
    async with served(app) as url, connected(url) as (reader, writer):
        writer.write(request(ENDLESS | {"stream": True}))
        answer = await reader.readuntil(b"data: ")
        writer.write(b"\x00garbage\r\n\r\n")
        answer += await reader.read()
    assert answer.count(b"HTTP/1.1") == 1
    assert b"malformed" not in answer


async def test_a_head_without_end_is_refused(app: FastAPI) -> None:
    sent = b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 300_000
    async with served(app) as url:
        assert error_of(await exchange(url, sent), 431)["code"] == "headers_too_large"


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHo", request(ENDLESS)[:-9]], ids=["head", "body"])
async def test_a_request_that_does_not_come_whole_times_out(
    app: FastAPI, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    async with served(app, HURRIED) as url:
        assert error_of(await exchange(url, sent), 408)["code"] == "request_timeout"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_connection_that_says_nothing_is_closed(app: FastAPI) -> None:
    async with served(app, HURRIED) as url:
        assert await exchange(url, b"") == b""


async def test_a_body_that_makes_headway_has_time(app: FastAPI) -> None:
    whole = request(ENDLESS | {"max_tokens": 1, "user": "u" * 1000})
    async with served(app, HURRIED) as url, connected(url) as (reader, writer):
        for start in range(0, len(whole), 300):
            writer.write(whole[start : start + 300])
            await asyncio.sleep(0.15)
        assert (await reader.read(12)) == b"HTTP/1.1 200"


async def test_a_body_that_nobody_needs_is_not_read_for_ever(app: FastAPI) -> None:
    sent = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\nabc"
    async with served(app, HURRIED) as url:
        begun = time.monotonic()
        assert b"404" in await exchange(url, sent)
        assert time.monotonic() - begun < 3


async def test_a_client_that_sends_a_large_body_can_read_why_it_is_refused(app: FastAPI) -> None:
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/v1/completions", json=ENDLESS | {"user": "u" * 20_000_000})
        assert response.status_code == 413
        assert response.headers["connection"] == "close"


async def test_idle_connections_make_room_for_one_that_asks(app: FastAPI) -> None:
    async with served(app, ConnectionSettings(max_connections=4)) as url:
        idle = [await asyncio.open_connection(*url.removeprefix("http://").split(":")) for _ in range(10)]
        answer = await exchange(url, request(ENDLESS | {"max_tokens": 1}, "1.0"))
        assert b" 200 " in answer
        for reader, writer in idle[:6]:
            assert await reader.read() == b""
            writer.close()
        for _, writer in idle[6:]:
            writer.close()


async def test_when_all_connections_are_busy_a_new_one_gets_503(app: FastAPI, engine: FakeEngine) -> None:
    engine.delay_s = 0.05
    async with served(app, ConnectionSettings(max_connections=1)) as url:
        async with connected(url) as (_, writer):
            writer.write(request(ENDLESS))
            await eventually(lambda: engine.num_live == 1)
            answer = await exchange(url, b"")
            assert error_of(answer, 503)["code"] == "too_many_connections"
            assert b"retry-after" in answer
        await eventually(lambda: engine.num_live == 0)
        assert b" 200 " in await exchange(url, request(ENDLESS | {"max_tokens": 1}, "1.0"))


async def test_a_client_that_leaves_while_it_sends_is_no_error(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(app) as url:
        async with connected(url) as (_, writer):
            writer.write(request(ENDLESS)[:-9])
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_http_1_0_gets_no_chunks(app: FastAPI, is_streamed: bool) -> None:
    async with served(app) as url:
        answer = await exchange(url, request(ENDLESS | {"max_tokens": 3, "stream": is_streamed}, "1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"keep-alive" not in head.lower()
    assert head.lower().count(b"connection: close") == 1
    assert body.startswith(b"data: " if is_streamed else b"{")
    assert body.endswith(b"data: [DONE]\n\n" if is_streamed else b"}")


async def test_an_offer_to_upgrade_is_passed_over(app: FastAPI) -> None:
    offers = b"Host: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAQ"
    offered = request(ENDLESS | {"max_tokens": 1}).replace(b"Host: x", offers)
    async with served(app) as url:
        assert (await exchange(url, offered)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("num_unread_bytes", "ending"), [(0, "close"), (1, "abort")])
def test_closing_does_not_wait_for_a_client_that_does_not_read(num_unread_bytes: int, ending: str) -> None:
    protocol = HttpProtocol.__new__(HttpProtocol)
    protocol.transport = Mock(**{"get_write_buffer_size.return_value": num_unread_bytes})
    protocol.close()
    assert [call[0] for call in protocol.transport.method_calls] == ["get_write_buffer_size", ending]
