"""Errors: OpenAI's one object, the right status, the field's name; never a 5xx for a client's mistake."""

import contextlib
import gzip
import json
from typing import Any

import httpx
import pytest

from tests.wire.raw import TIMEOUT_S, connect, read_all, request_head
from tests.wire.wire import check_error, post_raw

BAD_VALUES: list[tuple[str, Any]] = [
    ("max_tokens", -1), ("max_tokens", "5"), ("max_tokens", True), ("max_tokens", 1.5), ("temperature", -1),
    ("temperature", 3), ("temperature", "hot"), ("temperature", True), ("top_p", -0.1), ("top_p", 2), ("n", 0),
    ("n", -3), ("n", 100_000), ("n", "two"), ("best_of", 0), ("logprobs", -1), ("logprobs", 1000),
    ("logprobs", True), ("presence_penalty", 3), ("frequency_penalty", "a"), ("logit_bias", {"-1": 1}),
    ("logit_bias", {"a": 1}), ("logit_bias", {"1": 101}), ("logit_bias", []), ("stop", 5), ("stop", ["a"] * 5),
    ("echo", "yes"), ("stream", "yes"), ("seed", "x"), ("seed", 1.5), ("user", 5), ("prompt", []),
    ("prompt", 5), ("prompt", {"a": 1}), ("prompt", [-1]), ("prompt", [10**9]), ("prompt", [10**30]),
    ("prompt", ["a", 1]), ("prompt", [True]),
]  # fmt: skip
BAD_EXTENSIONS: list[tuple[str, Any]] = [
    ("top_k", -7), ("min_p", 2), ("min_tokens", -1), ("repetition_penalty", -1), ("stop_token_ids", [10**9]),
    ("stop_token_ids", "a"), ("prompt_logprobs", -2), ("prompt_logprobs", 1000),
]  # fmt: skip
RAW_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_bad_value_is_a_400_that_names_the_field(http: httpx.Client, model: str, field: str, value: Any) -> None:
    body = {"model": model, "prompt": "a", "max_tokens": 1} | {field: value}
    check_error(http.post("/v1/completions", json=body), 400, param=field)


@pytest.mark.extension
@pytest.mark.parametrize(("field", "value"), BAD_EXTENSIONS)
def test_a_bad_value_of_an_extension_is_named_too(http: httpx.Client, model: str, field: str, value: Any) -> None:
    check_error(http.post("/v1/completions", json={"model": model, "prompt": "a", field: value}), 400, param=field)


@pytest.mark.parametrize("number", RAW_NUMBERS)
@pytest.mark.parametrize("field", ["temperature", "seed", "max_tokens"])
def test_numbers_that_json_lacks_are_a_400_that_names_the_field(
    http: httpx.Client, model: str, field: str, number: str
) -> None:
    body = f'{{"model": {json.dumps(model)}, "prompt": "a", "{field}": {number}}}'
    check_error(post_raw(http, body), 400, param=field)


def test_a_nested_number_that_json_lacks_is_named_by_its_place(http: httpx.Client, model: str) -> None:
    body = f'{{"model": {json.dumps(model)}, "prompt": "a", "logit_bias": {{"5": NaN}}}}'
    check_error(post_raw(http, body), 400)
    assert post_raw(http, body).json()["error"]["param"].startswith("logit_bias")


def test_a_field_that_is_given_twice_is_a_400_that_names_it(http: httpx.Client, model: str) -> None:
    body = f'{{"model": {json.dumps(model)}, "prompt": "a", "prompt": "b"}}'
    check_error(post_raw(http, body), 400, param="prompt")
    nested = '"stream": true, "stream_options": {"include_usage": true, "include_usage": false}'
    body = f'{{"model": {json.dumps(model)}, "prompt": "a", {nested}}}'
    check_error(post_raw(http, body), 400, param="stream_options.include_usage")


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
    check_error(post_raw(http, body), 400)


def test_a_deep_value_is_a_400(http: httpx.Client, model: str) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    body = f'{{"model": {json.dumps(model)}, "prompt": {deep}}}'
    check_error(post_raw(http, body), 400, param="prompt")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_lone_surrogate_is_a_400(http: httpx.Client, model: str, path: str) -> None:
    text = '"a\\ud800b"'
    is_chat = path.endswith("/chat/completions")
    prompt = f'"messages": [{{"role": "user", "content": {text}}}]' if is_chat else f'"prompt": {text}'
    body = f'{{"model": {json.dumps(model)}, {prompt}}}'
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    check_error(response, 400)
    assert response.json()["error"]["param"].startswith("messages" if is_chat else "prompt")


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


def test_an_error_repeats_little_of_what_was_sent(http: httpx.Client, model: str) -> None:
    response = http.post("/v1/completions", json={"model": model, "prompt": "a", "x" * 100_000: 1})
    assert response.status_code == 400
    assert len(response.content) < 5000


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_of_another_type_is_a_415(http: httpx.Client, content_type: str) -> None:
    check_error(http.post("/v1/completions", content=b"{}", headers={"content-type": content_type}), 415)


def test_a_compressed_body_is_a_415(http: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    check_error(http.post("/v1/completions", content=gzip.compress(b"{}"), headers=headers), 415)


def test_a_huge_body_is_refused_before_it_is_sent(http: httpx.Client) -> None:
    with connect(http) as connection:
        connection.sendall(request_head(http, f"Content-Length: {10**15}"))
        assert connection.recv(64).split(b" ")[1] == b"413"


def test_a_chunked_body_is_refused_before_its_end(http: httpx.Client) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with connect(http) as connection:
        connection.sendall(request_head(http, "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError, TimeoutError):  # the server may stop reading once it has answered
            connection.settimeout(1)
            for _ in range(256):
                connection.sendall(chunk)
        connection.settimeout(TIMEOUT_S)
        assert connection.recv(64).split(b" ")[1] == b"413"


def test_what_is_no_http_gets_the_one_shape(http: httpx.Client) -> None:
    with connect(http) as connection:
        connection.sendall(b"NOT HTTP AT ALL\r\n\r\n")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"400"
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
