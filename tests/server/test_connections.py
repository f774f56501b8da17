"""What a connection shows: clients that leave, bodies refused early, silence, streams that outlast a signal."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from distllm.server.app import create_app
from distllm.server.settings import FrontEndSettings
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine
from tests.server.live import eventually, served

ENDLESS: dict[str, Any] = {"model": "tiny", "prompt": "the fox", "max_tokens": 400}
CHAT_ENDLESS: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}]}


@pytest_asyncio.fixture
async def live_url(app: FastAPI, engine: FakeEngine) -> AsyncIterator[str]:
    engine.delay_s = 0.01
    async with served(app) as url:
        yield url


async def raw_request(url: str, head: str, body: bytes = b"") -> bytes:
    """Send bytes as they are and read until the server closes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.replace("\n", "\r\n").encode() + body)
    await writer.drain()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", ENDLESS),
        ("/v1/completions", ENDLESS | {"stream": True}),
        ("/v1/completions", ENDLESS | {"prompt": ["a", "b"], "n": 2}),
        ("/v1/completions", ENDLESS | {"prompt": ["a", "b"], "stream": True}),
        ("/v1/chat/completions", CHAT_ENDLESS),
        ("/v1/chat/completions", CHAT_ENDLESS | {"stream": True}),
    ],
)
async def test_a_client_that_leaves_ends_its_request_in_the_engine(
    live_url: str, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    num_prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    async with httpx.AsyncClient(base_url=live_url) as client:
        asking = asyncio.create_task(client.post(path, json=body))
        await eventually(lambda: engine.num_live == num_prompts)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: engine.num_live == 0)
    assert {request_id for request_id, _ in engine.aborted} == {r.request_id for r in engine.requests}


async def test_a_declared_large_body_is_refused_before_it_is_sent(live_url: str) -> None:
    head = (
        "POST /v1/completions HTTP/1.1\nHost: x\nContent-Type: application/json\n"
        "Content-Length: 99999999\nConnection: close\n\n"
    )
    answer = await raw_request(live_url, head)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"code":"request_too_large"' in answer


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(live_url: str) -> None:
    head = "POST /v1/completions HTTP/1.1\nHost: x\nContent-Type: application/json\nTransfer-Encoding: chunked\n\n"
    piece = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    answer = await raw_request(live_url, head, piece * 4)  # and no end
    assert answer.startswith(b"HTTP/1.1 413")


async def test_a_silent_stream_carries_comments(byte_level: Tokenizer, settings: FrontEndSettings) -> None:
    engine = FakeEngine(600)
    engine.delay_s = 0.2
    app = create_app(engine, byte_level, replace(settings, keep_alive_s=0.02))
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/v1/completions", json=ENDLESS | {"max_tokens": 2, "stream": True})
    lines = response.text.split("\n")
    assert ": keep-alive" in lines
    assert lines.count("data: [DONE]") == 1


async def test_a_stream_that_flows_carries_no_comments(byte_level: Tokenizer, settings: FrontEndSettings) -> None:
    engine = FakeEngine(600)
    engine.delay_s = 0.02
    app = create_app(engine, byte_level, replace(settings, keep_alive_s=0.5))
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/v1/completions", json=ENDLESS | {"max_tokens": 60, "stream": True})
    assert response.elapsed.total_seconds() > 1
    assert ": keep-alive" not in response.text


async def test_streams_outlast_the_signal_that_ends_the_server(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AppStatus, "should_exit", True)
    async with httpx.AsyncClient(base_url=live_url) as client:
        response = await client.post("/v1/completions", json=ENDLESS | {"max_tokens": 5, "stream": True})
    assert response.text.endswith("data: [DONE]\n\n")


async def test_tokens_are_sent_as_they_come(live_url: str, engine: FakeEngine) -> None:
    async with (
        httpx.AsyncClient(base_url=live_url) as client,
        client.stream("POST", "/v1/completions", json=ENDLESS | {"stream": True}) as response,
    ):
        await anext(response.aiter_lines())
        assert engine.num_live == 1


async def test_two_requests_share_a_connection(live_url: str) -> None:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=live_url, limits=limits) as client:
        for is_streamed in (True, False, True):
            response = await client.post("/v1/completions", json=ENDLESS | {"max_tokens": 2, "stream": is_streamed})
            assert response.status_code == 200


async def test_a_malformed_request_with_an_endless_head_is_refused_once(
    live_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await raw_request(live_url, "GARBAGE" * 40_000 + "\n\n")
    assert answer.count(b"HTTP/1.1 4") == 1
    assert not [record for record in caplog.records if record.exc_info]
