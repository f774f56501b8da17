"""Completions: objects, prompt forms, choices, limits."""

from typing import Any

import httpx
import pytest

from tests.wire.wire import PROMPT, complete, stream


def prompt_ids(http: httpx.Client, model: str) -> list[int]:
    ids: list[int] = http.post("/tokenize", json={"model": model, "prompt": PROMPT}).json()["tokens"]
    return ids


def test_the_object_has_openai_s_fields(http: httpx.Client, model: str) -> None:
    answer = complete(http, model)
    assert answer["object"] == "text_completion"
    assert answer["model"] == model
    assert isinstance(answer["id"], str)
    assert isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert set(choice) >= {"text", "index", "logprobs", "finish_reason"}
    assert choice["logprobs"] is None
    assert choice["finish_reason"] in ("stop", "length")


def test_usage_adds_up(http: httpx.Client, model: str) -> None:
    usage = complete(http, model, max_tokens=3)["usage"]
    assert usage["prompt_tokens"] >= 1
    assert 1 <= usage["completion_tokens"] <= 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def test_sixteen_tokens_are_the_default(http: httpx.Client, model: str) -> None:
    usage = complete(http, model, max_tokens=None, ignore_eos=True)["usage"]
    assert usage["completion_tokens"] == 16


@pytest.mark.extension
def test_the_four_prompt_forms_agree(http: httpx.Client, model: str) -> None:
    ids = prompt_ids(http, model)
    texts = {complete(http, model, prompt=form)["choices"][0]["text"] for form in (PROMPT, [PROMPT], ids, [ids])}
    assert len(texts) == 1


def test_index_is_prompt_times_n_plus_choice(http: httpx.Client, model: str) -> None:
    prompts = [PROMPT, "The little fox", "One day"]
    alone = [complete(http, model, prompt=prompt)["choices"][0]["text"] for prompt in prompts]
    choices = complete(http, model, prompt=prompts, n=2)["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    assert [choice["text"] for choice in choices] == [text for text in alone for _ in range(2)]


def test_best_of_samples_more_than_it_returns(http: httpx.Client, model: str) -> None:
    answer = complete(http, model, best_of=4, n=2, temperature=1, seed=1, max_tokens=4, ignore_eos=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 16


def test_best_of_returns_the_likeliest_a_token(http: httpx.Client, model: str) -> None:
    def mean(choice: Any) -> float:
        values: list[float] = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    fields: dict[str, Any] = {"temperature": 1.5, "seed": 7, "max_tokens": 6, "logprobs": 0, "ignore_eos": True}
    all_four = complete(http, model, n=4, **fields)["choices"]
    best = complete(http, model, best_of=4, n=2, **fields)["choices"]
    expected = sorted(all_four, key=mean, reverse=True)[:2]
    assert [choice["text"] for choice in best] == [choice["text"] for choice in expected]


@pytest.mark.parametrize("seed", [0, 42, -5, 2**62])
def test_a_seed_repeats_its_text(http: httpx.Client, model: str, seed: int) -> None:
    texts = {complete(http, model, temperature=1, seed=seed)["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 1


def test_different_choices_of_a_sampled_request_differ(http: httpx.Client, model: str) -> None:
    choices = complete(http, model, n=4, temperature=1.5, seed=3, max_tokens=16)["choices"]
    assert len({choice["text"] for choice in choices}) > 1


def test_null_is_accepted_for_every_optional_field(http: httpx.Client, model: str) -> None:
    fields = (
        "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
        "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user",
    )  # fmt: skip
    assert complete(http, model, **dict.fromkeys(fields))["choices"]


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "auto"},
        {"prompt_cache_key": "k"},
    ],
)
def test_fields_that_change_no_answer_are_accepted(http: httpx.Client, model: str, fields: dict[str, Any]) -> None:
    assert complete(http, model, **fields)["choices"]


@pytest.mark.extension
def test_sampling_extensions_are_accepted(http: httpx.Client, model: str) -> None:
    fields = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 2}
    assert complete(http, model, temperature=1, **fields)["usage"]["completion_tokens"] == 8


@pytest.mark.extension
def test_top_k_of_one_is_greedy(http: httpx.Client, model: str) -> None:
    greedy = complete(http, model)["choices"][0]["text"]
    assert complete(http, model, temperature=1, top_k=1)["choices"][0]["text"] == greedy


@pytest.mark.extension
def test_a_forced_token_by_logit_bias_is_chosen(http: httpx.Client, model: str) -> None:
    token_id = prompt_ids(http, model)[-1]
    answer = complete(http, model, logit_bias={str(token_id): 100}, max_tokens=3)
    detokenized = http.post("/detokenize", json={"model": model, "tokens": [token_id] * 3}).json()["prompt"]
    assert answer["choices"][0]["text"] == detokenized


@pytest.mark.extension
def test_a_stop_token_id_ends_the_text(http: httpx.Client, model: str) -> None:
    scored = complete(http, model, logprobs=0, max_tokens=4, ignore_eos=True)["choices"][0]
    tokens = scored["logprobs"]["tokens"]
    text = "".join(tokens)
    ids = http.post("/tokenize", json={"model": model, "prompt": text, "add_special_tokens": False}).json()[
        "tokens"
    ]
    answer = complete(http, model, stop_token_ids=[ids[-1]], max_tokens=4, ignore_eos=True)["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert text.startswith(answer["text"])
    assert len(answer["text"]) < len(text)


def test_the_streamed_text_is_the_whole_text(http: httpx.Client, model: str) -> None:
    whole = complete(http, model, max_tokens=24)["choices"][0]
    chunks = stream(http, model, max_tokens=24)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
