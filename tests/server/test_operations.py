"""Keys, request ids, models, tokenising, health, metrics and version."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from distllm.scheduler.messages import Loading
from distllm.scheduler.stats import EngineStats
from distllm.server.app import create_app
from distllm.server.settings import FrontEndSettings
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine
from tests.server.live import served

BODY = {"model": "tiny", "prompt": "the fox", "max_tokens": 4}


def connect(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic key-one", "key-one", "Bearer key-one x"]
)
async def test_without_a_right_key_the_answer_is_401(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings, authorization: str | None
) -> None:
    app = create_app(engine, byte_level, replace(settings, api_keys=("key-one", "key-two")))
    headers = {} if authorization is None else {"authorization": authorization}
    async with connect(app) as client:
        response = await client.post("/v1/completions", content=b"not even JSON", headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


async def test_each_key_opens_and_health_and_metrics_need_none(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    app = create_app(engine, byte_level, replace(settings, api_keys=("key-one", "kéy-two")))
    async with connect(app) as client:
        for key in ("key-one", "kéy-two"):
            headers = {b"authorization": f"bearer {key}".encode()}
            assert (await client.post("/v1/completions", json=BODY, headers=headers)).status_code == 200
        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v1/models", "/version", "/healthy", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 401


async def test_a_request_id_is_kept_where_it_is_one(client: httpx.AsyncClient) -> None:
    response = await client.get("/version", headers={"x-request-id": "my-id_1"})
    assert response.headers["x-request-id"] == "my-id_1"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "<script>"])
async def test_a_request_id_that_is_none_is_replaced(client: httpx.AsyncClient, bad: str) -> None:
    response = await client.get("/version", headers={"x-request-id": bad})
    assert len(response.headers["x-request-id"]) == 32


async def test_errors_carry_the_request_id_too(client: httpx.AsyncClient) -> None:
    response = await client.get("/nowhere", headers={"x-request-id": "my-id"})
    assert response.headers.get_list("x-request-id") == ["my-id"]


async def test_every_served_name_is_a_model(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["tiny", "tiny-alias"]
    assert (await client.get("/v1/models/tiny-alias")).json() == models["data"][1]
    answer = await client.post("/v1/completions", json=BODY | {"model": "tiny-alias"})
    assert answer.json()["model"] == "tiny-alias"


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/v1/models", "/v1/models/tiny"])
async def test_head_is_answered_where_get_is(app: FastAPI, path: str) -> None:
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        got, asked = await client.get(path), await client.head(path)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-length"] == got.headers["content-length"]
        assert (await client.head("/v1/completions")).status_code == 405


async def test_the_texts_of_tokens_are_found_only_when_asked_for(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distllm.server.handlers.tokenization.legacy_token", None)
    assert (await client.post("/tokenize", json={"prompt": "the fox"})).json()["token_strs"] is None


async def test_tokenize_and_detokenize_are_inverse(client: httpx.AsyncClient) -> None:
    text = "naïve 😀 fox <|end|>"
    tokens = (await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 512
    assert (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json() == {"prompt": text}


async def test_tokenize_renders_conversations(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "fox"}], "add_generation_prompt": False}
    tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
    prompt = (await client.post("/detokenize", json={"tokens": tokens})).json()["prompt"]
    assert prompt == "<|user|>fox<|end|>\n"


async def test_tokenizer_info_names_special_tokens_and_the_template(client: httpx.AsyncClient) -> None:
    info = (await client.get("/tokenizer_info")).json()
    assert (info["eos_token"], info["bos_token"]) == ("<|endoftext|>", None)
    assert "<|end|>" in info["chat_template"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"prompt": "a", "token": 1}, "token"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [600]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "ab"}, "tokens"),
    ],
)
async def test_bad_token_requests_name_the_field(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("state", "stall_s", "live", "ready", "status"),
    [
        ("ready", 0.0, 200, 200, "ready"),
        ("ready", 61.0, 200, 503, "stalled"),
        ("starting", 0.0, 200, 503, "starting"),
        ("restarting", 0.0, 200, 503, "restarting"),
        ("draining", 0.0, 200, 503, "draining"),
        ("failed", 0.0, 503, 503, "failed"),
    ],
)
async def test_health_tells_progress(
    client: httpx.AsyncClient, engine: FakeEngine, state: Any, stall_s: float, live: int, ready: int, status: str
) -> None:
    engine.state, engine.seconds_since_progress = state, stall_s
    for path, expected in (("/health/live", live), ("/health/ready", ready), ("/health", ready)):
        response = await client.get(path)
        assert response.status_code == expected
        assert response.json()["status"] == status
        assert ("error" in response.json()) == (expected == 503)


async def test_health_shows_how_far_a_start_is(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.state, engine.loading = "starting", Loading("reading weights", 0.25)
    loading = (await client.get("/health")).json()["loading"]
    assert (loading["activity"], loading["fraction"]) == ("reading weights", 0.25)


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """The sum over all labels of a sample name."""
    lines = (await client.get("/metrics")).text.splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if line.split("{")[0].split(" ")[0] == name]
    assert values, f"no metric {name}"
    return sum(map(float, values))


async def test_metrics_count_tokens_requests_and_times(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json=BODY | {"prompt": ["the fox", "the dog"], "n": 2})
    expected = {
        "vllm:prompt_tokens_total": answer.json()["usage"]["prompt_tokens"],
        "vllm:generation_tokens_total": 16,
        "vllm:request_success_total": 4,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:inter_token_latency_seconds_count": 12,
        "vllm:request_time_per_output_token_seconds_count": 4,
        "vllm:e2e_request_latency_seconds_count": 2,
        "vllm:request_queue_time_seconds_count": 2,
    }
    assert {name: await metric(client, name) for name in expected} == expected


async def test_metrics_show_the_engine_s_figures(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.stats = EngineStats(
        num_running=3, num_waiting=2, kv_cache_usage=0.5, prefix_query_tokens_total=9, prefix_hit_tokens_total=4,
        preemptions_total=1,
    )  # fmt: skip
    engine.num_restarts = 2
    expected = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.5,
        "vllm:prefix_cache_queries_total": 9,
        "vllm:prefix_cache_hits_total": 4,
        "vllm:num_preemptions_total": 1,
        "distllm_engine_restarts_total": 2,
        "distllm_engine_loading_fraction": 1,
        "distllm_engine_state": 1,
    }
    assert {name: await metric(client, name) for name in expected} == expected


async def test_failed_and_refused_requests_are_counted_by_status(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post("/v1/completions", json={})
    await client.get("/made/up")
    text = (await client.get("/metrics")).text
    assert 'distllm_http_requests_total{method="POST",route="/v1/completions",status="400"} 1.0' in text
    assert 'distllm_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text


async def test_a_failed_generation_is_an_error_not_a_success(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 1
    await client.post("/v1/completions", json=BODY)
    text = (await client.get("/metrics")).text
    assert 'finished_reason="error",model_name="tiny"} 1.0' in text


async def test_version_is_the_installed_one(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": "0.1.0"}


async def test_the_docs_describe_the_bodies(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    schema = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "logprobs", "best_of"} <= set(schema["properties"])
