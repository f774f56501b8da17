"""Frames of a stream: ids, finish chunks, usage, [DONE]."""

from typing import Any

import httpx
import pytest

from tests.wire.wire import chat_stream, stream


def test_every_chunk_has_the_same_id_and_time(http: httpx.Client, model: str) -> None:
    for chunks in (stream(http, model), chat_stream(http, model)):
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


def test_the_objects_are_named_as_openai_names_them(http: httpx.Client, model: str) -> None:
    assert {chunk["object"] for chunk in stream(http, model)} == {"text_completion"}
    assert {chunk["object"] for chunk in chat_stream(http, model)} == {"chat.completion.chunk"}


def test_a_completion_ends_with_an_empty_text_and_a_reason(http: httpx.Client, model: str) -> None:
    choices = [chunk["choices"][0] for chunk in stream(http, model)]
    assert choices[-1]["text"] == ""
    assert choices[-1]["finish_reason"] in ("stop", "length")
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert all(choice["text"] for choice in choices[:-1])


def test_a_chat_begins_with_the_role_and_ends_with_an_empty_delta(http: httpx.Client, model: str) -> None:
    choices = [chunk["choices"][0] for chunk in chat_stream(http, model)]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {}
    assert choices[-1]["finish_reason"] in ("stop", "length")
    assert all(choice["finish_reason"] is None for choice in choices[:-1])


@pytest.mark.parametrize("ask", [stream, chat_stream])
def test_without_include_usage_there_is_no_usage(http: httpx.Client, model: str, ask: Any) -> None:
    assert all(chunk.get("usage") is None and chunk["choices"] for chunk in ask(http, model))


@pytest.mark.parametrize("ask", [stream, chat_stream])
def test_include_usage_adds_null_and_a_last_chunk(http: httpx.Client, model: str, ask: Any) -> None:
    chunks = ask(http, model, stream_options={"include_usage": True})
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_choices_of_a_stream_keep_their_indices(http: httpx.Client, model: str) -> None:
    ends: dict[int, int] = {}
    for chunk in stream(http, model, prompt=["One day", "The fox"], n=2):
        for choice in chunk["choices"]:
            assert choice["index"] not in ends
            if choice["finish_reason"] is not None:
                ends[choice["index"]] = 1
    assert sorted(ends) == [0, 1, 2, 3]


def test_best_of_above_n_cannot_be_streamed(http: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": "a", "best_of": 2, "stream": True}
    assert http.post("/v1/completions", json=body).status_code == 400


def test_no_event_holds_half_a_character(http: httpx.Client, model: str) -> None:
    chunks = stream(http, model, prompt="grüße 😀 中文", echo=True, max_tokens=4)
    assert "grüße 😀 中文" in "".join(chunk["choices"][0]["text"] for chunk in chunks)
