"""Stop strings: cut where they begin, across token boundaries, up to four."""

import httpx
import pytest

from tests.wire.wire import chat, complete, stream


@pytest.fixture(scope="module")
def text(http: httpx.Client, model: str) -> str:
    """What the model says greedily; long enough to cut."""
    said: str = complete(http, model, max_tokens=32, ignore_eos=True)["choices"][0]["text"]
    assert len(said) > 20
    return said


def test_a_stop_string_and_what_follows_are_not_in_the_text(http: httpx.Client, model: str, text: str) -> None:
    stop = text[9:12]
    choice = complete(http, model, max_tokens=32, ignore_eos=True, stop=stop)["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_a_stop_string_that_spans_tokens_is_found(http: httpx.Client, model: str, text: str) -> None:
    stop = text[5:17]
    choice = complete(http, model, max_tokens=32, ignore_eos=True, stop=[stop])["choices"][0]
    assert choice["text"] == text[: text.index(stop)]


def test_a_stream_never_shows_part_of_a_stop_string(http: httpx.Client, model: str, text: str) -> None:
    stop = text[5:17]
    chunks = stream(http, model, max_tokens=32, ignore_eos=True, stop=[stop])
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_text_that_only_begins_like_a_stop_string_is_given_in_full(
    http: httpx.Client, model: str, text: str
) -> None:
    stop = text[8:12] + "\x00never"
    chunks = stream(http, model, max_tokens=32, ignore_eos=True, stop=[stop])
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


def test_the_first_of_four_counts(http: httpx.Client, model: str, text: str) -> None:
    stops = ["\x00a", text[12:15], text[6:9], "\x00b"]
    choice = complete(http, model, max_tokens=32, ignore_eos=True, stop=stops)["choices"][0]
    assert choice["text"] == text[: min(text.index(stop) for stop in stops if stop in text)]


def test_five_are_refused(http: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": "a", "stop": list("abcde")}
    assert http.post("/v1/completions", json=body).json()["error"]["param"] == "stop"


def test_an_echoed_prompt_is_not_searched(http: httpx.Client, model: str) -> None:
    choice = complete(http, model, prompt="Once upon a", echo=True, stop="upon a", max_tokens=1)["choices"][0]
    assert choice["text"].startswith("Once upon a")


def test_chat_stops_too(http: httpx.Client, model: str) -> None:
    said = chat(http, model)["choices"][0]["message"]["content"]
    choice = chat(http, model, stop=said[:1])["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
