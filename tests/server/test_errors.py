"""Every bad request gets one error object with the right status, field and code; never a 5xx."""

import gzip
import json
import threading
from typing import Any

import httpx
import pytest

from distllm.scheduler.refusals import EngineDraining, EngineUnavailable, QueueFull
from distllm.server.errors import InvalidRequest
from distllm.server.protocol.json_body import MAX_FIELDS, parse_json_object
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine

HUGE = 10**400
BASE = {"model": "tiny", "prompt": "fox"}
CHAT_BASE = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}]}

BAD_COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
    ({"max_tokens": 5.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"max_tokens": HUGE}, "max_tokens", "invalid_value"),
    ({"max_tokens": 10_000}, "max_tokens", "context_length_exceeded"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"temperature": [1]}, "temperature", "invalid_type"),
    ({"temperature": HUGE}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"top_k": 1.5}, "top_k", "invalid_type"),
    ({"min_p": 1.1}, "min_p", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"n": 1.5}, "n", "invalid_type"),
    ({"n": 128, "prompt": ["a"] * 9}, "prompt", "invalid_value"),
    ({"best_of": 0}, "best_of", "invalid_value"),
    ({"n": 3, "best_of": 2}, "best_of", "invalid_value"),
    ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
    ({"logprobs": -1}, "logprobs", "invalid_value"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"logprobs": True}, "logprobs", "invalid_type"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "invalid_value"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"echo": 1}, "echo", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
    ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
    ({"min_tokens": -1}, "min_tokens", "invalid_value"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "invalid_value"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop", "invalid_type"),
    ({"stop": {"a": 1}}, "stop", "invalid_type"),
    ({"stop_token_ids": [600]}, "stop_token_ids", "invalid_value"),
    ({"stop_token_ids": ["1"]}, "stop_token_ids", "invalid_type"),
    ({"stop_token_ids": [3] * 1025}, "stop_token_ids", "invalid_value"),
    ({"stop_token_ids": 3}, "stop_token_ids", "invalid_type"),
    ({"logit_bias": {"600": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": HUGE}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"five": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"²": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": "1"}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"5": True}}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias", "duplicate_parameter"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
    ({"seed": 2**64}, "seed", "invalid_value"),
    ({"seed": "x"}, "seed", "invalid_type"),
    ({"priority": 2**40}, "priority", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
    ({"prompt": [1, "a"]}, "prompt", "invalid_type"),
    ({"prompt": ["a", 1]}, "prompt", "invalid_type"),
    ({"prompt": [[1], "a"]}, "prompt[1]", "invalid_type"),
    ({"prompt": [True]}, "prompt", "invalid_type"),
    ({"prompt": [1.0]}, "prompt", "invalid_type"),
    ({"prompt": 5}, "prompt", "invalid_type"),
    ({"prompt": {"text": "a"}}, "prompt", "invalid_type"),
    ({"prompt": [600]}, "prompt", "invalid_value"),
    ({"prompt": [-1]}, "prompt", "invalid_value"),
    ({"prompt": [[1], [HUGE]]}, "prompt[1]", "invalid_value"),
    ({"prompt": [1] * 600}, "prompt", "context_length_exceeded"),
    ({"model": None}, "model", "invalid_type"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"user": 5}, "user", "invalid_type"),
    ({"suffix": "the end"}, "suffix", "unsupported_parameter"),
    ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"nonsense": 1}, "nonsense", "unknown_parameter"),
]
BAD_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": None}, "messages", "invalid_type"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [{}] * 8193}, "messages", "invalid_value"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"content": "a"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "unsupported_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "messages[0].content[0].text",
        "invalid_type",
    ),
    ({"messages": [{"role": "user", "content": "a", "mood": "b"}]}, "messages[0].mood", "unknown_parameter"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls",
        "unsupported_parameter",
    ),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"max_completion_tokens": 9999}, "max_completion_tokens", "context_length_exceeded"),
    ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": 1}, "logprobs", "invalid_type"),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "invalid_value"),
    ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"audio": {"voice": "a"}}, "audio", "unsupported_parameter"),
    ({"prediction": {}}, "prediction", "unsupported_parameter"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "invalid_value"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "invalid_value",
    ),
    ({"prompt": "hi"}, "prompt", "unknown_parameter"),
]


def check_error(response: httpx.Response, status: int, param: str | None, code: str | None) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["param"], body["error"]["code"]) == (param, code), body
    message: str = body["error"]["message"]
    assert message
    return message


@pytest.mark.parametrize(("fields", "param", "code"), BAD_COMPLETIONS)
async def test_a_bad_completion_field_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, code: str
) -> None:
    check_error(await client.post("/v1/completions", json=BASE | fields), 400, param, code)
    assert engine.num_live == 0


@pytest.mark.parametrize(("fields", "param", "code"), BAD_CHATS)
async def test_a_bad_chat_field_is_named(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str
) -> None:
    check_error(await client.post("/v1/chat/completions", json=CHAT_BASE | fields), 400, param, code)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"nonsense", None, "invalid_json"),
        (b"[1]", None, "invalid_type"),
        (b'"text"', None, "invalid_type"),
        (b'{"model": "tiny", "prompt": "\xff"}', None, "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "temperature", "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}', "temperature", "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "temperature": 1e999}', "temperature", "invalid_value"),
        (b'{"model": "tiny", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "seed", "invalid_value"),
        (b'{"model": "tiny", "prompt": [[5], [1' + b"0" * 5000 + b"]]}", "prompt[1][0]", "invalid_value"),
        (b'{"model": "tiny", "prompt": "a", "logit_bias": {"5": NaN}}', "logit_bias.5", "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "stop": [1e400]}', "stop[0]", "invalid_value"),
        (
            b'{"model": "tiny", "prompt": "a", "stream_options": {"include_usage": true, "include_usage": false}}',
            "stream_options.include_usage",
            "duplicate_parameter",
        ),
        (b'{"model": "tiny", "prompt": "a", "prompt": "b"}', "prompt", "duplicate_parameter"),
        (b'{"model": "tiny", "prompt": "a\\ud800"}', "prompt", "invalid_value"),
        (b'{"model": "tiny", "prompt": ["a", "\\udc00b"]}', "prompt[1]", "invalid_value"),
        (b'{"model": "tiny", "prompt": "a", "stop": "\\ud83d"}', "stop", "invalid_value"),
        (b'{"model": "tiny", "prompt": "a", "\\ud800": 1}', None, "invalid_value"),
        (b'{"model": "tiny", "prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "prompt", "invalid_json"),
        (b'{"model": "tiny", "stop": "a", "x": ' + b'{"a":' * 20_000, "x", "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "x": ' + b'{"a":' * 500 + b"1" + b"}" * 501, "x", "invalid_json"),
        (b'\xef\xbb\xbf{"model": "tiny", "prompt": "a"}', None, "invalid_json"),
    ],
)
async def test_a_body_that_is_no_good_json_is_refused(
    client: httpx.AsyncClient, body: bytes, param: str | None, code: str
) -> None:
    headers = {"content-type": "application/json"}
    check_error(await client.post("/v1/completions", content=body, headers=headers), 400, param, code)


@pytest.mark.parametrize("values", [b"[" + b"1," * 2**20 + b"1]", b"[" + b"[1]," * 2**18 + b"[1]]"])
def test_more_values_than_a_request_has_use_for_are_refused_unparsed(values: bytes) -> None:
    with pytest.raises(InvalidRequest, match="send several requests"):
        parse_json_object(b'{"prompt": ' + values + b"}")


def test_an_object_of_too_many_fields_is_refused() -> None:
    body = {"logit_bias": {str(number): 1 for number in range(MAX_FIELDS + 1)}}
    with pytest.raises(InvalidRequest, match="more than 262144 fields"):
        parse_json_object(json.dumps(body).encode())


async def test_the_first_of_many_unknown_fields_is_named(client: httpx.AsyncClient) -> None:
    fields = {f"field{number}": 1 for number in range(5000)}
    check_error(await client.post("/v1/completions", json=BASE | fields), 400, "field0", "unknown_parameter")


def test_commas_and_brackets_within_text_are_no_values() -> None:
    text = "[,{" * 2**20
    assert parse_json_object(json.dumps({"prompt": text}).encode()) == {"prompt": text}


@pytest.mark.parametrize(("size", "is_inline"), [(100, True), (100_000, False)])
async def test_a_large_body_is_parsed_off_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, size: int, is_inline: bool
) -> None:
    threads = []

    def parse(body: bytes) -> Any:
        threads.append(threading.current_thread())
        return parse_json_object(body)

    monkeypatch.setattr("distllm.server.body.parse_json_object", parse)
    assert (await client.post("/v1/completions", json=BASE | {"user": "u" * size})).status_code == 200
    assert [thread is threading.main_thread() for thread in threads] == [is_inline]


@pytest.mark.parametrize(
    "fields",
    [
        {"x" * 150_000: 1},
        {"metadata": {"x" * 150_000: 1}},
        {"model": "x" * 150_000},
        {"logit_bias": {"x" * 150_000: 1}},
        {"prompt": [10**4000]},
    ],
)
async def test_an_error_repeats_no_more_than_a_little_of_what_was_sent(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    response = await client.post("/v1/completions", json=BASE | fields)
    assert response.status_code in (400, 404)
    assert len(response.content) < 1000
    assert "..." in response.text


async def test_a_long_path_is_not_repeated_either(client: httpx.AsyncClient) -> None:
    assert len((await client.get("/" + "x" * 10_000)).content) < 500


async def test_whole_surrogate_pairs_are_text(client: httpx.AsyncClient) -> None:
    body = b'{"model": "tiny", "prompt": "a\\ud83d\\ude00"}'
    assert (await client.post("/v1/completions", content=body)).status_code == 200


async def test_a_missing_field_is_named(client: httpx.AsyncClient) -> None:
    check_error(
        await client.post("/v1/completions", json={"prompt": "a"}), 400, "model", "missing_required_parameter"
    )
    check_error(
        await client.post("/v1/completions", json={"model": "tiny"}), 400, "prompt", "missing_required_parameter"
    )


async def test_an_unknown_field_comes_with_a_suggestion(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json=BASE | {"max_token": 3})
    assert "did you mean max_tokens?" in check_error(response, 400, "max_token", "unknown_parameter")


async def test_an_overlong_prompt_is_told_its_numbers(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json=BASE | {"prompt": [1] * 500, "max_tokens": 20})
    message = check_error(response, 400, "max_tokens", "context_length_exceeded")
    assert all(number in message for number in ("512", "520", "500", "20", "12"))


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": ["a", "x" * 150_000]}, "prompt[1]"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 150_000}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|end|>" * 20_000}]}, "messages"),
    ],
)
async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    client: httpx.AsyncClient, byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch, path: str,
    fields: dict[str, Any], param: str
) -> None:  # fmt: skip
    monkeypatch.setattr(byte_level, "_encode_long", None)
    monkeypatch.setattr("distllm.server.control_tokens.encode_marked_chat", None)
    response = await client.post(path, json={"model": "tiny"} | fields)
    assert "at least" in check_error(response, 400, param, "context_length_exceeded")


async def test_an_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    check_error(await client.post("/v1/completions", json=BASE | {"model": "gpt"}), 404, "model", "model_not_found")
    check_error(await client.get("/v1/models/gpt/oss"), 404, "model", "model_not_found")


async def test_unknown_routes_and_methods_keep_the_shape(client: httpx.AsyncClient) -> None:
    check_error(await client.get("/v1/nothing"), 404, None, "not_found")
    response = await client.get("/v1/completions")
    check_error(response, 405, None, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
async def test_other_content_types_are_415(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post("/v1/completions", content=b"{}", headers={"content-type": content_type})
    check_error(response, 415, None, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate, gzip", "br"])
async def test_a_compressed_body_is_415(client: httpx.AsyncClient, encoding: str) -> None:
    response = await client.post(
        "/v1/completions", content=gzip.compress(b"{}"), headers={"content-encoding": encoding}
    )
    assert "Content-Encoding" in check_error(response, 415, None, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=UTF-8", "application/vnd.api+json", None])
async def test_json_by_other_names_is_json(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    body = b'{"model": "tiny", "prompt": "a"}'
    assert (await client.post("/v1/completions", content=body, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("refusal", "status", "code", "retry_after"),
    [
        (QueueFull(9, 7.4), 429, "rate_limit_exceeded", "7"),
        (QueueFull(9, 0.1), 429, "rate_limit_exceeded", "1"),
        (EngineDraining(), 503, "draining", "2"),
        (EngineUnavailable("no engine"), 503, "engine_unavailable", "2"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_engine_that_takes_no_requests_says_when_to_try_again(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    refusal: Exception,
    status: int,
    code: str,
    retry_after: str,
    is_streamed: bool,
) -> None:
    engine.refusal = refusal
    response = await client.post("/v1/completions", json=BASE | {"stream": is_streamed})
    check_error(response, status, None, code)
    assert response.headers["retry-after"] == retry_after


async def test_before_the_model_is_loaded_requests_get_503(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.state = "starting"
    response = await client.post("/v1/completions", json=BASE)
    assert "still being loaded" in check_error(response, 503, None, "engine_unavailable")


async def test_a_queue_that_fills_between_the_prompts_leaves_none_running(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = engine.submit

    def submit_two(request: Any) -> Any:
        if len(engine.requests) == 2:
            raise QueueFull(2, 1.0)
        return submit(request)

    monkeypatch.setattr(engine, "submit", submit_two)
    response = await client.post("/v1/completions", json=BASE | {"prompt": ["a", "b", "c"]})
    check_error(response, 429, None, "rate_limit_exceeded")
    assert engine.num_live == 0
    assert len(engine.aborted) == 2


async def test_an_unforeseen_exception_is_hidden_and_logged(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refusal = ZeroDivisionError("secret")
    response = await client.post("/v1/completions", json=BASE)
    assert "secret" not in check_error(response, 500, None, "internal_error")
    assert response.headers["x-request-id"] in caplog.text
    assert "secret" in caplog.text
