"""Chat completions: objects, limits, content forms."""

from typing import Any

import httpx
import pytest

from tests.wire.wire import chat, chat_stream


def test_the_object_has_openai_s_fields(http: httpx.Client, model: str) -> None:
    answer = chat(http, model)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == model
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["logprobs"] is None
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["message"]["refusal"] is None


def test_the_streamed_message_is_the_whole_message(http: httpx.Client, model: str) -> None:
    whole = chat(http, model, max_tokens=24)["choices"][0]
    choices = [chunk["choices"][0] for chunk in chat_stream(http, model, max_tokens=24)]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == whole["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_hold(http: httpx.Client, model: str, field: str) -> None:
    answer = chat(http, model, **{"max_tokens": None, field: 2, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["finish_reason"] == "length"


def test_text_parts_are_content(http: httpx.Client, model: str) -> None:
    text = "What is 2 + 3?"
    parts = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    plain = [{"role": "user", "content": text}]
    assert chat(http, model, messages=parts)["choices"] == chat(http, model, messages=plain)["choices"]


def test_n_choices_have_their_indices(http: httpx.Client, model: str) -> None:
    choices = chat(http, model, n=3, temperature=1, seed=1)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]


def test_an_answer_can_be_sent_back(http: httpx.Client, model: str) -> None:
    question = {"role": "user", "content": "What is 2 + 3?"}
    message = chat(http, model)["choices"][0]["message"]
    assert chat(http, model, messages=[question, message, question])["choices"]


def test_null_is_accepted_for_every_optional_field(http: httpx.Client, model: str) -> None:
    fields = (
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
        "max_completion_tokens", "metadata", "modalities", "n", "parallel_tool_calls", "prediction",
        "presence_penalty", "reasoning_effort", "response_format", "seed", "service_tier", "stop", "store",
        "stream", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
    )  # fmt: skip
    assert chat(http, model, **dict.fromkeys(fields))["choices"]


@pytest.mark.parametrize(
    "fields", [{"response_format": {"type": "text"}}, {"modalities": ["text"]}, {"tools": []}, {"user": "me"}]
)
def test_fields_that_ask_for_nothing_are_accepted(http: httpx.Client, model: str, fields: dict[str, Any]) -> None:
    assert chat(http, model, **fields)["choices"]
