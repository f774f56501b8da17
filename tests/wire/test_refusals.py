"""Fields that are unknown or not done are refused by name, never ignored."""

from typing import Any

import httpx
import pytest

from tests.wire.wire import check_error

MESSAGES = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("field", ["max_token", "temprature", "nonsense"])
def test_an_unknown_field_is_named(http: httpx.Client, model: str, field: str) -> None:
    response = http.post("/v1/completions", json={"model": model, "prompt": "a", field: 1})
    assert field in check_error(response, 400, param=field)


def test_a_misspelt_field_gets_a_suggestion(http: httpx.Client, model: str) -> None:
    response = http.post("/v1/completions", json={"model": model, "prompt": "a", "max_token": 1})
    assert "did you mean max_tokens" in check_error(response, 400, param="max_token")


def test_an_unknown_field_of_a_message_is_named(http: httpx.Client, model: str) -> None:
    messages = [{"role": "user", "content": "a", "colour": "red"}]
    response = http.post("/v1/chat/completions", json={"model": model, "messages": messages})
    assert "colour" in check_error(response, 400)


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", [FUNCTION]), ("functions", [{"name": "f"}]), ("response_format", {"type": "json_object"}),
     ("audio", {"voice": "alloy", "format": "wav"}), ("modalities", ["text", "audio"]),
     ("prediction", {"type": "content", "content": "a"}), ("web_search_options", {})],
)  # fmt: skip
def test_a_chat_field_is_honoured_or_refused_by_name(
    http: httpx.Client, model: str, field: str, value: Any
) -> None:
    check_error(
        http.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, field: value}), 400, field
    )


def test_a_suffix_is_refused_by_name(http: httpx.Client, model: str) -> None:
    check_error(http.post("/v1/completions", json={"model": model, "prompt": "a", "suffix": "b"}), 400, "suffix")


def test_an_image_is_refused_by_its_place(http: httpx.Client, model: str) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    body = {"model": model, "messages": [{"role": "user", "content": [part]}]}
    check_error(http.post("/v1/chat/completions", json=body), 400)
