"""The workloads, and how each dialect puts them."""

import json

import numpy as np
import pytest

from benchmarks.dialects import DIALECTS
from benchmarks.prompts import Prompt, Workload, as_text, make_prompts

RNG_SEED = 5


def prompts_of(**settings: object) -> list[Prompt]:
    workload = Workload(**({"num_prompts": 40} | settings))  # type: ignore[arg-type]
    return make_prompts(workload, range(50, 60), np.random.default_rng(RNG_SEED))


def test_prompts_have_the_lengths_and_tokens_asked_for() -> None:
    for prompt in prompts_of(input_len=7, output_len=3):
        assert len(prompt.token_ids) == 7
        assert prompt.output_len == 3
        assert set(prompt.token_ids) <= set(range(50, 60))


def test_lengths_vary_within_the_range_and_reach_its_ends() -> None:
    prompts = prompts_of(num_prompts=400, input_len=10, output_len=4, range_ratio=0.5)
    assert {len(prompt.token_ids) for prompt in prompts} == set(range(5, 16))
    assert {prompt.output_len for prompt in prompts} == set(range(2, 7))


def test_prompts_share_as_many_prefixes_as_asked_for() -> None:
    prompts = prompts_of(input_len=4, prefix_len=8, num_prefixes=3)
    assert {len(prompt.token_ids) for prompt in prompts} == {12}
    assert len({tuple(prompt.token_ids[:8]) for prompt in prompts}) == 3
    assert prompts[0].token_ids[:8] == prompts[3].token_ids[:8]
    assert len({tuple(prompt.token_ids) for prompt in prompts}) == 40


def test_the_same_seed_gives_the_same_prompts() -> None:
    assert prompts_of() == prompts_of()


@pytest.mark.parametrize(
    "settings",
    [{"num_prompts": 0}, {"input_len": 0}, {"output_len": 0}, {"range_ratio": 1.0}, {"prefix_len": -1}],
)
def test_impossible_workloads_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        prompts_of(**settings)


def test_our_dialect_sends_ids_and_asks_for_usage() -> None:
    body = json.loads(DIALECTS["vllm"].body(Prompt([1, 2], 9), "m"))
    assert body["prompt"] == [1, 2]
    assert body["max_tokens"] == 9
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_transformers_gets_text_and_no_field_that_it_refuses() -> None:
    [prompt] = as_text([Prompt([1, 2], 9)], lambda ids: f"text of {list(ids)}")
    body = json.loads(DIALECTS["transformers"].body(prompt, "m"))
    assert body["prompt"] == "text of [1, 2]"
    assert set(body) == {"model", "prompt", "max_tokens", "temperature", "stream"}


def test_the_chat_dialect_sends_one_user_turn() -> None:
    body = json.loads(DIALECTS["openai-chat"].body(Prompt([1], 9, "hello"), "m"))
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert DIALECTS["openai-chat"].path == "/v1/chat/completions"
