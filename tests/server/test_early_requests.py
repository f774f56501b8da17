"""Requests that come before a model is served over peers."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from distllm.server.app import create_app
from distllm.server.settings import FrontEndSettings
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine

BODY = {"model": "tiny", "prompt": "the fox", "max_tokens": 4}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture
def early(engine: FakeEngine) -> FakeEngine:
    engine.state = "starting"
    return engine


def connect(
    engine: FakeEngine, tokenizer: Tokenizer, settings: FrontEndSettings, **changes: Any
) -> httpx.AsyncClient:
    app = create_app(engine, tokenizer, replace(settings, route="pipeline", **changes))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", BODY), ("/v1/chat/completions", CHAT)])
async def test_they_are_answered_once_the_model_is_served(
    early: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings, path: str, body: dict[str, Any]
) -> None:
    async with connect(early, byte_level, settings) as client:
        asking = asyncio.create_task(client.post(path, json=body))
        done, _ = await asyncio.wait([asking], timeout=0.2)
        assert not done
        early.become("ready")
        assert (await asking).status_code == 200


async def test_what_is_wrong_with_them_is_said_at_once(
    early: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    async with connect(early, byte_level, settings) as client:
        answer = await client.post("/v1/completions", json={**BODY, "max_tokens": "many"})
        assert answer.status_code == 400
        answer = await client.post("/v1/completions", json={**BODY, "model": "another"})
        assert answer.status_code == 404


async def test_no_more_wait_than_the_queue_takes(
    early: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    async with connect(early, byte_level, settings, max_live=1) as client:
        first = asyncio.create_task(client.post("/v1/completions", json=BODY))
        await asyncio.wait([first], timeout=0.2)
        refused = await client.post("/v1/completions", json=BODY)
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        early.become("ready")
        assert (await first).status_code == 200


@pytest.mark.parametrize("state", ["draining", "stopped"])
async def test_they_end_with_the_server(
    early: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings, state: Any
) -> None:
    async with connect(early, byte_level, settings) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=BODY))
        await asyncio.wait([asking], timeout=0.2)
        early.become(state)
        answer = await asking
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "draining"


async def test_a_server_without_peers_has_them_come_again(
    early: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    app = create_app(early, byte_level, settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        assert (await client.post("/v1/completions", json=BODY)).status_code == 503
