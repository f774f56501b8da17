"""Errors: OpenAI's one object, the right status, the field's name; never a 5xx for a client's mistake."""

import json
import socket
from typing import Any

import httpx
import pytest

from tests.wire.wire import check_error

BAD_VALUES: list[tuple[str, Any]] = [
    ("max_tokens", -1), ("max_tokens", "5"), ("max_tokens", True), ("max_tokens", 1.5), ("temperature", -1),
    ("temperature", 3), ("temperature", "hot"), ("temperature", True), ("top_p", -0.1), ("top_p", 2), ("n", 0),
    ("n", -3), ("n", 100_000), ("n", "two"), ("best_of", 0), ("logprobs", -1), ("logprobs", 1000),
    ("logprobs", True), ("presence_penalty", 3), ("frequency_penalty", "a"), ("logit_bias", {"-1": 1}),
    ("logit_bias", {"a": 1}), ("logit_bias", {"1": 101}), ("logit_bias", []), ("stop", 5), ("stop", ["a"] * 5),
    ("echo", "yes"), ("stream", "yes"), ("seed", "x"), ("seed", 1.5), ("user", 5), ("prompt", []),
    ("prompt", 5), ("prompt", {"a": 1}), ("prompt", [-1]), ("prompt", [10**9]), ("prompt", [10**30]),
    ("prompt", ["a", 1]), ("prompt", [True]), ("top_k", -7), ("min_p", 2), ("min_tokens", -1),
    ("repetition_penalty", -1), ("stop_token_ids", [10**9]), ("stop_token_ids", "a"),
]  # fmt: skip
RAW_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_bad_value_is_a_400_that_names_the_field(http: httpx.Client, model: str, field: str, value: Any) -> None:
    body = {"model": model, "prompt": "a", "max_tokens": 1} | {field: value}
    check_error(http.post("/v1/completions", json=body), 400, param=field)


@pytest.mark.parametrize("number", RAW_NUMBERS)
def test_numbers_that_json_lacks_are_a_400(http: httpx.Client, model: str, number: str) -> None:
    body = f'{{"model": {json.dumps(model)}, "prompt": "a", "temperature": {number}}}'
    check_error(http.post("/v1/completions", content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"a":' * 50_000,
        b"[" * 50_000 + b"]" * 50_000,
    ],
    ids=["empty", "cut", "list", "null", "string", "not UTF-8", "bad UTF-8", "deep and cut", "deep"],
)
def test_a_malformed_body_is_a_400(http: httpx.Client, body: bytes) -> None:
    check_error(http.post("/v1/completions", content=body, headers={"content-type": "application/json"}), 400)


def test_a_deep_value_is_a_400(http: httpx.Client, model: str) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    body = f'{{"model": {json.dumps(model)}, "prompt": {deep}}}'
    check_error(http.post("/v1/completions", content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_lone_surrogate_is_a_400(http: httpx.Client, model: str, path: str) -> None:
    text = '"a\\ud800b"'
    prompt = (
        f'"prompt": {text}'
        if path.endswith("/v1/completions")
        else f'"messages": [{{"role": "user", "content": {text}}}]'
    )
    body = f'{{"model": {json.dumps(model)}, {prompt}}}'
    check_error(http.post(path, content=body, headers={"content-type": "application/json"}), 400)


def test_an_unknown_model_is_a_404(http: httpx.Client) -> None:
    body = {"model": "no-such-model", "prompt": "a"}
    check_error(http.post("/v1/completions", json=body), 404, code="model_not_found")
    check_error(http.get("/v1/models/no-such-model"), 404, code="model_not_found")


def test_a_missing_prompt_is_named(http: httpx.Client, model: str) -> None:
    check_error(http.post("/v1/completions", json={"model": model}), 400, param="prompt")


def test_a_prompt_over_the_context_says_so(http: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": "word " * 400_000, "max_tokens": 1}
    check_error(http.post("/v1/completions", json=body), 400, code="context_length_exceeded")


def test_an_answer_over_the_context_says_so(http: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": "a", "max_tokens": 100_000_000}
    check_error(http.post("/v1/completions", json=body), 400, code="context_length_exceeded")


def test_unknown_paths_and_methods_keep_the_shape(http: httpx.Client) -> None:
    check_error(http.get("/v1/no-such-path"), 404)
    check_error(http.get("/v1/completions"), 405)
    check_error(http.post("/v1/models", json={}), 405)


def test_stream_options_without_stream_are_refused(http: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": "a", "stream_options": {"include_usage": True}}
    check_error(http.post("/v1/completions", json=body), 400, param="stream_options")


def test_best_of_below_n_is_refused(http: httpx.Client, model: str) -> None:
    check_error(
        http.post("/v1/completions", json={"model": model, "prompt": "a", "n": 2, "best_of": 1}), 400, "best_of"
    )


@pytest.mark.parametrize("messages", [[], "hi", [{}], [{"role": "user"}], [{"role": "king", "content": "a"}], [5]])
def test_bad_messages_are_a_400(http: httpx.Client, model: str, messages: Any) -> None:
    response = http.post("/v1/chat/completions", json={"model": model, "messages": messages})
    check_error(response, 400)
    assert response.json()["error"]["param"].startswith("messages")


def test_top_logprobs_without_logprobs_are_refused(http: httpx.Client, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}
    check_error(http.post("/v1/chat/completions", json=body), 400, param="top_logprobs")


def test_a_huge_body_is_refused_before_it_is_sent(http: httpx.Client) -> None:
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: wire\r\nContent-Type: application/json\r\n"
        f"Authorization: {http.headers['authorization']}\r\nContent-Length: {10**15}\r\n\r\n"
    )
    with socket.create_connection((http.base_url.host, http.base_url.port or 80), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).split(b" ")[1] == b"413"
