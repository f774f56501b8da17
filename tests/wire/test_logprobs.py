"""Echo and logprobs: offsets from the prompt's start, null first, what lm-eval reads."""

from typing import Any

import httpx
import pytest

from tests.wire.wire import PROMPT, chat, chat_stream, complete, stream


def test_echo_repeats_the_prompt(http: httpx.Client, model: str) -> None:
    answer = complete(http, model, max_tokens=4)["choices"][0]["text"]
    assert complete(http, model, max_tokens=4, echo=True)["choices"][0]["text"] == PROMPT + answer


def test_echo_with_no_tokens_gives_the_prompt_alone(http: httpx.Client, model: str) -> None:
    answer = complete(http, model, max_tokens=0, echo=True)
    assert answer["choices"][0]["text"] == PROMPT
    assert answer["usage"]["completion_tokens"] == 0


def test_a_streamed_echo_joins_to_the_same_text(http: httpx.Client, model: str) -> None:
    whole = complete(http, model, echo=True)["choices"][0]["text"]
    assert "".join(chunk["choices"][0]["text"] for chunk in stream(http, model, echo=True)) == whole


def test_the_first_prompt_token_has_null(http: httpx.Client, model: str) -> None:
    logprobs = complete(http, model, echo=True, max_tokens=0, logprobs=1)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])


def test_the_four_lists_are_equally_long(http: httpx.Client, model: str) -> None:
    logprobs = complete(http, model, echo=True, max_tokens=3, logprobs=2)["choices"][0]["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(values) for values in logprobs.values()}) == 1


@pytest.mark.parametrize("is_echoed", [False, True])
def test_text_offsets_count_from_the_prompt_s_start(http: httpx.Client, model: str, is_echoed: bool) -> None:
    choice = complete(http, model, echo=is_echoed, max_tokens=6, logprobs=0, ignore_eos=True)["choices"][0]
    text = choice["text"] if is_echoed else PROMPT + choice["text"]
    for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        if text[offset : offset + len(token)] != token:
            assert token.startswith(("<", "bytes:")), f"{token!r} is not at {offset} of {text!r}"


def test_top_logprobs_hold_the_chosen_token(http: httpx.Client, model: str) -> None:
    logprobs = complete(http, model, max_tokens=4, logprobs=3, temperature=1, seed=5)["choices"][0]["logprobs"]
    for token, value, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == pytest.approx(value)
        assert 1 <= len(top) <= 4


def test_greedy_tokens_are_the_likeliest(http: httpx.Client, model: str) -> None:
    logprobs = complete(http, model, max_tokens=4, logprobs=2)["choices"][0]["logprobs"]
    for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert value == pytest.approx(max(top.values()))


@pytest.mark.extension
def test_a_generated_token_scores_the_same_as_part_of_a_prompt(http: httpx.Client, model: str) -> None:
    ids = http.post("/tokenize", json={"model": model, "prompt": PROMPT}).json()["tokens"]
    longer = complete(http, model, prompt=ids, max_tokens=1, logprobs=0, ignore_eos=True, echo=True)["choices"][0]
    text_ids = http.post("/tokenize", json={"model": model, "prompt": longer["text"]}).json()["tokens"]
    if len(text_ids) != len(ids) + 1:  # the token merges with its neighbour as text
        text_ids = ids
    scored = complete(http, model, prompt=text_ids, max_tokens=0, logprobs=0, echo=True)["choices"][0]["logprobs"]
    expected = longer["logprobs"]["token_logprobs"][: len(text_ids)]
    assert scored["token_logprobs"][1:] == pytest.approx(expected[1:], abs=1e-4)


def test_streamed_logprobs_join_to_those_of_the_whole(http: httpx.Client, model: str) -> None:
    whole = complete(http, model, echo=True, logprobs=1)["choices"][0]["logprobs"]
    tokens, offsets = [], []
    for chunk in stream(http, model, echo=True, logprobs=1):
        logprobs = chunk["choices"][0]["logprobs"] or {"tokens": [], "text_offset": []}
        tokens += logprobs["tokens"]
        offsets += logprobs["text_offset"]
    assert (tokens, offsets) == (whole["tokens"], whole["text_offset"])


@pytest.mark.extension
def test_what_lm_eval_sends_for_a_likelihood_is_answered(http: httpx.Client, model: str) -> None:
    ids = http.post("/tokenize", json={"model": model, "prompt": PROMPT}).json()["tokens"]
    fields: dict[str, Any] = {"prompt": [ids, ids[:2]], "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    for choice, sent in zip(complete(http, model, **fields)["choices"], (ids, ids[:2]), strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(sent) + 1


def test_chat_logprobs_have_bytes_and_rivals(http: httpx.Client, model: str) -> None:
    choice = chat(http, model, logprobs=True, top_logprobs=2)["choices"][0]
    assert choice["logprobs"]["content"]
    for entry in choice["logprobs"]["content"]:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(entry["top_logprobs"]) == 2
        assert bytes(entry["bytes"]).decode(errors="replace") == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == pytest.approx(entry["logprob"])


def test_chat_logprobs_without_rivals_have_an_empty_list(http: httpx.Client, model: str) -> None:
    content = chat(http, model, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in content)


def test_streamed_chat_logprobs_join_to_those_of_the_whole(http: httpx.Client, model: str) -> None:
    whole = chat(http, model, logprobs=True)["choices"][0]["logprobs"]["content"]
    choices = [chunk["choices"][0] for chunk in chat_stream(http, model, logprobs=True)]
    joined = [entry["token"] for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert joined == [entry["token"] for entry in whole]
