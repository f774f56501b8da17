"""Models, request ids, tokenising, health, metrics."""

import httpx
import pytest


def test_models_are_listed_and_shown(http: httpx.Client, model: str) -> None:
    models = http.get("/v1/models").json()
    assert models["object"] == "list"
    card = next(card for card in models["data"] if card["id"] == model)
    assert card["object"] == "model"
    assert isinstance(card["created"], int)
    assert isinstance(card["owned_by"], str)
    assert http.get(f"/v1/models/{model}").json()["id"] == model


def test_every_response_has_a_request_id(http: httpx.Client) -> None:
    assert http.get("/v1/models").headers["x-request-id"]
    assert http.get("/no-such-path").headers["x-request-id"]


def test_a_client_s_request_id_comes_back(http: httpx.Client) -> None:
    response = http.get("/v1/models", headers={"x-request-id": "wire-suite-1"})
    assert response.headers["x-request-id"] == "wire-suite-1"


@pytest.mark.extension
def test_text_survives_tokenising(http: httpx.Client, model: str) -> None:
    text = "Once upon a time, grüße 😀 中文."
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    tokens = http.post("/tokenize", json=body).json()
    assert tokens["count"] == len(tokens["tokens"])
    detokenized = http.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]}).json()["prompt"]
    assert detokenized == text


@pytest.mark.extension
def test_health_is_well(http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200


@pytest.mark.extension
def test_liveness_and_readiness_are_well(http: httpx.Client) -> None:
    assert http.get("/health/live").status_code == 200
    assert http.get("/health/ready").status_code == 200


@pytest.mark.extension
def test_the_version_is_told(http: httpx.Client) -> None:
    assert http.get("/version").json()["version"]


@pytest.mark.extension
def test_metrics_have_the_names_that_boards_use(http: httpx.Client, model: str) -> None:
    http.post("/v1/completions", json={"model": model, "prompt": "One day", "max_tokens": 3})
    text = http.get("/metrics").text
    for name in (
        "vllm:time_to_first_token_seconds_bucket", "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket", "vllm:request_queue_time_seconds_bucket",
        "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total", "vllm:num_preemptions_total", "vllm:request_success_total",
    ):  # fmt: skip
        assert f"\n{name}{{" in text
