"""Requests of an app with two routes: where they go, what they say of it, and the dry run."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import httpx
import msgspec
import pytest
import pytest_asyncio

from distllm.engine.pipeline.placement.routing import LatencyTarget
from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.client import EngineClient
from distllm.scheduler.messages import EngineRequest, SequenceStart
from distllm.scheduler.refusals import QueueFull
from distllm.scheduler.stats import EngineStats
from distllm.server.app import create_app
from distllm.server.routing.hybrid_engine import HybridEngine
from distllm.server.routing.route import EngineRoute
from distllm.server.settings import FrontEndSettings, SamplingDefaults
from distllm.server.tokenizer import Tokenizer
from tests.clusters import sample_cluster
from tests.server.fake_engine import FakeEngine

BODY: dict[str, Any] = {"model": "tiny", "prompt": "the fox", "max_tokens": 4}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}]}


def report_steps(engine: FakeEngine, tpot_s: float) -> None:
    """As after prompts at 10,000 tokens a second, and tokens of one sequence every `tpot_s`."""
    engine.stats = msgspec.structs.replace(
        engine.stats,
        steps_total=101,
        decode_steps_total=100,
        decode_sequences_total=100,
        decode_s_total=100 * tpot_s,
        prefill_steps_total=1,
        prefill_tokens_total=1000,
        prefill_s_total=0.1 + tpot_s,
    )


def asked_of(engine: FakeEngine) -> list[EngineRequest]:
    """By clients; the server measures idle engines by requests of its own."""
    return [request for request in engine.requests if not request.request_id.startswith("probe-")]


def occupy(route: EngineRoute, num_sequences: int) -> None:
    starts = [SequenceStart(index) for index in range(num_sequences)]
    route.submit(EngineRequest("long", [1, 2], SamplingParams(max_tokens=100), 0, starts)).pending_tokens = 0


@pytest.fixture
def local(engine: FakeEngine) -> FakeEngine:
    return engine


@pytest.fixture
def peers() -> FakeEngine:
    """Two stages."""
    engine = FakeEngine(vocab_size=600)
    engine.cluster.replace(sample_cluster())
    return engine


@pytest.fixture
def hybrid(local: FakeEngine, peers: FakeEngine) -> HybridEngine:
    members = []
    for name, engine, tpot_s in (("local", local, 0.02), ("pipeline", peers, 0.04)):
        route = EngineRoute(
            "local" if name == "local" else "pipeline", engine, max_running=4, max_live=8, token_budget=64
        )
        report_steps(engine, tpot_s)
        route.note_stats()
        members.append((route, cast(EngineClient, engine)))
    return HybridEngine(members, LatencyTarget(ttft_s=1.0, tpot_s=0.1), patience_s=1.0)


@pytest_asyncio.fixture
async def client(hybrid: HybridEngine, byte_level: Tokenizer) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(hybrid, byte_level, FrontEndSettings(model_names=("tiny",)), SamplingDefaults())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=10) as client:
        yield client
    await hybrid.prober.close()


@pytest.mark.parametrize("path_and_body", [("/v1/completions", BODY), ("/v1/chat/completions", CHAT)])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_every_answer_says_its_route_and_why(
    client: httpx.AsyncClient, path_and_body: tuple[str, dict[str, Any]], is_streamed: bool
) -> None:
    path, body = path_and_body
    answer = await client.post(path, json=body | {"stream": is_streamed, "max_tokens": 4})
    assert answer.status_code == 200
    assert answer.headers["x-route"] == "local"
    reason = answer.headers["x-route-reason"]
    assert reason.startswith("local is the cheapest that meets the target: TTFT 2")
    assert "TPOT 20.0 ms. pipeline: TTFT 4" in reason
    assert reason.endswith("Target: TTFT 1.00 s, TPOT 100 ms.")


@pytest.mark.parametrize("route", ["local", "pipeline", " Pipeline "])
async def test_a_request_may_ask_for_its_route(
    client: httpx.AsyncClient, local: FakeEngine, peers: FakeEngine, route: str
) -> None:
    answer = await client.post("/v1/completions", json=BODY, headers={"x-route": route})
    name = route.strip().lower()
    assert answer.headers["x-route"] == name
    assert answer.headers["x-route-reason"] == f"the request asks for {name}"
    assert (len(asked_of(local)), len(asked_of(peers))) == ((1, 0) if name == "local" else (0, 1))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/route/explain"])
@pytest.mark.parametrize("wrong", ["moon", "", "offload"])
async def test_a_route_that_is_not_there_is_refused_by_name(
    client: httpx.AsyncClient, path: str, wrong: str
) -> None:
    answer = await client.post(path, json=BODY, headers={"x-route": wrong})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "x-route")
    assert error["message"] == f"x-route is {wrong!r}; this server has the routes local and pipeline"


async def test_all_prompts_of_a_request_take_one_route(client: httpx.AsyncClient, local: FakeEngine) -> None:
    await client.post("/v1/completions", json=BODY | {"prompt": ["the fox", "the dog", "a"]})
    assert len(asked_of(local)) == 3


async def test_requests_spill_over_where_the_target_would_be_missed(
    client: httpx.AsyncClient, hybrid: HybridEngine, peers: FakeEngine
) -> None:
    """Here four run at a time, and a token takes 20 ms."""
    local = hybrid.router.routes[0]
    occupy(local, 3)
    assert (await client.post("/v1/route/explain", json=BODY)).json()["route"] == "local"
    occupy(local, 1)
    plan = (await client.post("/v1/route/explain", json=BODY)).json()
    assert plan["route"] == "pipeline"
    assert plan["routes"][0]["prediction"]["queue_s"] == pytest.approx(100 * 0.08), "as four at worst take"
    assert (await client.post("/v1/completions", json=BODY)).headers["x-route"] == "pipeline"
    assert len(asked_of(peers)) == 1


async def test_a_full_route_is_none_and_two_full_ones_are_429(
    client: httpx.AsyncClient, hybrid: HybridEngine, local: FakeEngine, peers: FakeEngine
) -> None:
    occupy(hybrid.router.routes[0], 8)
    answer = await client.post("/v1/completions", json=BODY)
    assert answer.headers["x-route"] == "pipeline"
    assert "local: its queue is full, with 8 sequences." in answer.headers["x-route-reason"]
    occupy(hybrid.router.routes[1], 8)
    local.refusal = peers.refusal = QueueFull(8, 3.0)
    answer = await client.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


async def test_a_request_goes_where_it_fits_and_a_default_length_yields(
    client: httpx.AsyncClient, local: FakeEngine
) -> None:
    local.executor_info = replace(local.executor_info, num_blocks=4)
    answer = await client.post("/v1/completions", json=BODY | {"max_tokens": 200})
    assert answer.headers["x-route"] == "pipeline"
    assert "local: it takes 64 tokens a sequence, and this request may have" in answer.headers["x-route-reason"]
    forced = await client.post("/v1/completions", json=BODY | {"max_tokens": 200}, headers={"x-route": "local"})
    assert (forced.status_code, forced.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.headers["x-route"] == "local"
    [request] = asked_of(local)
    assert len(request.prompt_ids) + (request.params.max_tokens or 0) == 64


async def test_without_peers_all_goes_here_and_health_says_what_is_missing(
    client: httpx.AsyncClient, peers: FakeEngine
) -> None:
    peers.cluster.replace(sample_cluster(waiting="0 of 2 needed peers can serve"))
    answer = await client.post("/v1/completions", json=BODY)
    assert answer.headers["x-route"] == "local"
    assert "pipeline: 0 of 2 needed peers can serve." in answer.headers["x-route-reason"]
    health = await client.get("/health")
    assert health.status_code == (await client.get("/health/ready")).status_code == 200
    assert health.json()["routes"] == [
        {"route": "local", "status": "ready"},
        {"route": "pipeline", "status": "ready", "unavailable": "0 of 2 needed peers can serve"},
    ]


async def test_an_engine_that_hangs_gets_no_more_while_there_is_another(
    client: httpx.AsyncClient, local: FakeEngine, peers: FakeEngine
) -> None:
    local.seconds_since_progress = 31.0
    answer = await client.post("/v1/completions", json=BODY)
    assert answer.headers["x-route"] == "pipeline"
    assert "local: it has not finished a step for 31 s." in answer.headers["x-route-reason"]
    peers.state = "failed"
    assert (await client.post("/v1/completions", json=BODY)).headers["x-route"] == "local"


async def test_where_nothing_runs_a_request_waits_for_what_will(
    client: httpx.AsyncClient, local: FakeEngine, peers: FakeEngine
) -> None:
    local.state = "failed"
    peers.cluster.replace(sample_cluster(waiting="0 of 2"))
    answer = await client.post("/v1/completions", json=BODY)
    assert answer.headers["x-route"] == "pipeline"
    health = await client.get("/health")
    assert health.status_code == 503
    reasons = "local: the fake engine is failed; pipeline: 0 of 2"
    assert health.json()["error"]["message"] == f"the server is waiting: {reasons}"
    peers.state = "failed"
    answer = await client.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert (await client.get("/health/live")).status_code == 503


async def test_the_dry_run_shows_every_route_and_generates_nothing(
    client: httpx.AsyncClient, local: FakeEngine, peers: FakeEngine
) -> None:
    plan = (await client.post("/v1/route/explain", json=BODY)).json()
    assert (plan["route"], plan["why"], plan["max_tokens"], plan["num_sequences"]) == ("local", "cheapest", 4, 1)
    assert plan["target"] == {"ttft_s": 1.0, "tpot_s": 0.1}
    here, over_peers = plan["routes"]
    assert (here["num_machines"], over_peers["num_machines"]) == (1, 2)
    assert here["prediction"]["tpot_s"] == pytest.approx(0.02)
    assert over_peers["prediction"]["total_s"] > here["prediction"]["total_s"]
    assert (here["is_measured"], here["numerics"], here["max_model_len"]) == (True, "fake", 512)
    chat = (await client.post("/v1/route/explain", json=CHAT)).json()
    assert chat["route"] == "local"
    assert not local.requests
    assert not peers.requests


async def test_the_dry_run_says_why_a_route_is_away(client: httpx.AsyncClient, peers: FakeEngine) -> None:
    peers.state = "restarting"
    [_, report] = (await client.post("/v1/route/explain", json=BODY)).json()["routes"]
    assert (report["unavailable"], report["prediction"]) == ("the fake engine is restarting", None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        (BODY | CHAT, "prompt"),
        (BODY | {"max_tokens": -1}, "max_tokens"),
        (BODY | {"tokens": 1}, "tokens"),
    ],
)
async def test_a_wrong_dry_run_names_its_field(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    answer = await client.post("/v1/route/explain", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_requests_are_counted_by_route_and_predictions_stand_beside_what_happened(
    client: httpx.AsyncClient,
) -> None:
    await client.post("/v1/completions", json=BODY)
    await client.post("/v1/completions", json=BODY, headers={"x-route": "pipeline"})
    text = (await client.get("/metrics")).text
    assert 'distllm_route_requests_total{route="local",why="cheapest"} 1.0' in text
    assert 'distllm_route_requests_total{route="pipeline",why="forced"} 1.0' in text
    for which in ("predicted", "actual"):
        for what in ("ttft", "tpot"):
            assert f'distllm_route_{which}_{what}_seconds_count{{route="local"}} 1.0' in text
    assert 'distllm_route_predicted_ttft_seconds_sum{route="local"} 0.02' in text


async def test_figures_of_a_route_that_nothing_used_for_long_are_taken_anew(
    client: httpx.AsyncClient, hybrid: HybridEngine, peers: FakeEngine
) -> None:
    await client.post("/v1/completions", json=BODY)
    await hybrid.prober.measured(hybrid.router.routes[1])
    assert [len(probe.sequences) for probe in peers.requests] == [1, 4], "alone, and as many as can run"
    assert not asked_of(peers)
    await client.post("/v1/completions", json=BODY)
    await hybrid.prober.measured(hybrid.router.routes[1])
    assert len(peers.requests) == 2, "they are new"


async def test_a_server_of_one_engine_has_one_route(engine: FakeEngine, byte_level: Tokenizer) -> None:
    engine.stats = EngineStats()
    app = create_app(engine, byte_level, FrontEndSettings(model_names=("tiny",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        answer = await client.post("/v1/completions", json=BODY)
        assert answer.headers["x-route-reason"] == "local is the only route of this server"
        plan = (await client.post("/v1/route/explain", json=BODY)).json()
        assert (plan["route"], plan["why"], len(plan["routes"])) == ("local", "only", 1)
        answer = await client.post("/v1/completions", json=BODY, headers={"x-route": "pipeline"})
        assert answer.json()["error"]["message"] == "x-route is 'pipeline'; this server has the route local alone"
        assert "routes" not in (await client.get("/health")).json()
