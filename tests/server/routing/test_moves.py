"""Requests whose route is lost before their first token: what their answers and the metrics say of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from distllm.engine.pipeline.placement.routing import LatencyTarget
from distllm.scheduler.client import EngineClient
from distllm.scheduler.messages import EngineRequest, SequenceOutput
from distllm.server.app import create_app
from distllm.server.routing.hybrid_engine import HybridEngine
from distllm.server.routing.route import EngineRoute
from distllm.server.settings import FrontEndSettings, SamplingDefaults
from distllm.server.tokenizer import Tokenizer
from tests.clusters import sample_cluster
from tests.scheduler.test_client import eventually
from tests.server.fake_engine import FakeEngine, FakeStream
from tests.server.routing.test_routed_requests import BODY, CHAT, asked_of, report_steps


class LostEngine(FakeEngine):
    """Computes nothing until `lose`, and then has its successor go on with everything."""

    def __init__(self) -> None:
        super().__init__(vocab_size=600)
        self.cluster.replace(sample_cluster())
        self.is_lost = asyncio.Event()
        self.successor: Any = None

    def submit(self, request: EngineRequest) -> "SilentStream":
        super().submit(request)
        return SilentStream(self, request)

    def lose(self) -> None:
        assert all(self.successor(request) for request in self.requests)
        self.is_lost.set()


class SilentStream(FakeStream):
    async def __anext__(self) -> SequenceOutput:
        engine = self._engine
        assert isinstance(engine, LostEngine)
        await engine.is_lost.wait()
        raise StopAsyncIteration


@pytest.fixture
def peers() -> LostEngine:
    return LostEngine()


@pytest_asyncio.fixture
async def client(engine: FakeEngine, peers: LostEngine, byte_level: Tokenizer) -> AsyncIterator[httpx.AsyncClient]:
    """Tokens are too slow here, so that requests go to the peers."""
    local = EngineRoute("local", engine, max_running=4, max_live=8, token_budget=64)
    pipeline = EngineRoute("pipeline", peers, max_running=4, max_live=8, token_budget=64)
    for route, each, tpot_s in ((local, engine, 0.5), (pipeline, peers, 0.04)):
        report_steps(each, tpot_s)
        route.note_stats()
    members = [(local, cast(EngineClient, engine)), (pipeline, cast(EngineClient, peers))]
    hybrid = HybridEngine(members, LatencyTarget(ttft_s=1.0, tpot_s=0.1), patience_s=1.0)
    app = create_app(hybrid, byte_level, FrontEndSettings(model_names=("tiny",)), SamplingDefaults())
    transport = httpx.ASGITransport(app=app)
    async with app.state.service.streams, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await hybrid.prober.close()


async def post_and_lose(
    client: httpx.AsyncClient, peers: LostEngine, path: str, body: dict[str, Any], **headers: str
) -> httpx.Response:
    """The answer to a request that is moved from the peers to this machine before its first token."""
    num_prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    answering = asyncio.create_task(client.post(path, json=body, headers=headers))
    await eventually(lambda: len(asked_of(peers)) == num_prompts)
    peers.lose()
    return await answering


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(each) for each in data]


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", BODY), ("/v1/chat/completions", CHAT)])
async def test_a_whole_answer_names_the_route_on_which_it_ran(
    client: httpx.AsyncClient, peers: LostEngine, path: str, body: dict[str, Any]
) -> None:
    answer = await post_and_lose(client, peers, path, body)
    assert answer.headers["x-route"] == "local"
    reason = answer.headers["x-route-reason"]
    assert reason.startswith("it was moved from pipeline, which could not go on. Before: pipeline is the cheapest")
    direct = await client.post(path, json=body, headers={"x-route": "local"})
    assert direct.headers["x-route-reason"] == "the request asks for local"
    assert answer.json()["choices"] == direct.json()["choices"]


@pytest.mark.parametrize("headers", [{}, {"x-resumable": "true"}])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
async def test_chunks_of_a_moved_stream_name_their_route_where_clients_of_openai_find_it(
    client: httpx.AsyncClient, peers: LostEngine, path: str, headers: dict[str, str]
) -> None:
    body = (BODY if path == "completions" else CHAT) | {"stream": True, "max_tokens": 4}
    answer = await post_and_lose(client, peers, f"/v1/{path}", body, **headers)
    assert answer.headers["x-route"] == "pipeline", "which is sent before the move"
    kind = Completion if path == "completions" else ChatCompletionChunk
    parsed = [kind.construct(**chunk) for chunk in chunks_of(answer)]
    assert [(chunk.model_extra or {}).get("x_route") for chunk in parsed][-1] == "local"
    *_, last = chunks_of(await client.post(f"/v1/{path}", json=body, headers={"x-route": "local"}))
    assert "x_route" not in last, "which was not moved"


async def test_moves_are_counted_by_prompt(client: httpx.AsyncClient, peers: LostEngine) -> None:
    name = "distllm_route_moves_total"
    assert f"{name}{{" not in (await client.get("/metrics")).text
    await post_and_lose(client, peers, "/v1/completions", BODY | {"prompt": ["the fox", "the dog"]})
    assert f'{name}{{from="pipeline",to="local"}} 2.0' in (await client.get("/metrics")).text
