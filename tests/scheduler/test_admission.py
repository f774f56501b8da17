"""Requests that an engine refuses, and the reason that it gives."""

from typing import Any

import pytest

from distllm.scheduler.admission import (
    DuplicateRequest,
    InvalidSequences,
    InvalidTokens,
    PoolTooSmall,
    PromptTooLong,
    RequestRefused,
    TooManyRequests,
)
from distllm.scheduler.config import SchedulerConfig
from tests.scheduler.harness import Harness
from tests.scheduler.slot_executor import VOCAB_SIZE


def refusal(engine: Harness, *args: Any, **params: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        engine.add(*args, **params)
    engine.scheduler.check_integrity()
    return caught.value


def test_a_prompt_must_leave_room_for_one_token() -> None:
    engine = Harness(max_model_len=20)
    error = refusal(engine, "a", range(20))
    assert isinstance(error, PromptTooLong)
    assert str(error) == "prompt has 20 tokens; this model accepts 19 and at least one more to generate"
    engine.add("a", range(19))


def test_a_prompt_that_is_only_scored_may_fill_the_context() -> None:
    engine = Harness(max_model_len=20)
    engine.add("a", range(20), max_tokens=0)
    error = refusal(engine, "b", range(21), max_tokens=0)
    assert str(error) == "prompt has 21 tokens; this model accepts 20"


def test_what_needs_more_blocks_than_the_pool_has_is_refused() -> None:
    engine = Harness(num_blocks=5, block_size=4)
    error = refusal(engine, "a", range(10), max_tokens=12)
    assert isinstance(error, PoolTooSmall)
    assert "need KV for 21 tokens; the cache holds 20" in str(error)
    request = engine.add("a", range(10), max_tokens=11)
    engine.run()
    engine.assert_undisturbed(request)


def test_a_prompt_larger_than_the_pool_is_refused_whatever_is_asked() -> None:
    engine = Harness(num_blocks=5, block_size=4)
    assert isinstance(refusal(engine, "a", range(21), max_tokens=None), PoolTooSmall)
    assert isinstance(refusal(engine, "a", range(21), max_tokens=0), PoolTooSmall)


def test_without_max_tokens_a_sequence_ends_where_the_pool_does() -> None:
    engine = Harness(num_blocks=5, block_size=4)
    request = engine.add("a", range(10), max_tokens=None)
    engine.run()
    assert len(engine.tokens_of("a")) == 11
    engine.assert_undisturbed(request, max_len=21)


def test_resumed_tokens_count_as_known() -> None:
    engine = Harness(max_model_len=20)
    assert isinstance(refusal(engine, "a", range(15), outputs={0: [1] * 6}), PromptTooLong)


@pytest.mark.parametrize("prompt", [[], [VOCAB_SIZE], [-1]])
def test_empty_prompts_and_unknown_ids_are_refused(prompt: list[int]) -> None:
    assert isinstance(refusal(Harness(), "a", prompt), InvalidTokens)


def test_unknown_ids_in_resumed_tokens_are_refused() -> None:
    assert isinstance(refusal(Harness(), "a", [1], outputs={0: [VOCAB_SIZE]}), InvalidTokens)


@pytest.mark.parametrize("outputs", [{}, {-1: [1]}])
def test_a_request_names_its_sequences(outputs: dict[int, list[int]]) -> None:
    assert isinstance(refusal(Harness(), "a", [1], outputs=outputs), InvalidSequences)


def test_an_id_is_live_once() -> None:
    engine = Harness()
    engine.add("a", [1], max_tokens=1)
    assert isinstance(refusal(engine, "a", [1]), DuplicateRequest)
    engine.run()
    engine.add("a", [1])


def test_the_queue_is_bounded_and_opens_again_when_a_request_ends() -> None:
    engine = Harness(max_num_seqs=1, max_waiting=2)
    for name in ("a", "b", "c"):
        engine.add(name, [1], max_tokens=1)
    error = refusal(engine, "d", [1])
    assert isinstance(error, TooManyRequests)
    assert str(error) == "3 requests are live, as many as this engine takes"
    engine.step()
    engine.add("d", [1])


def test_limits_that_let_nothing_run_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="max_num_seqs must be at least 1, not 0"):
        SchedulerConfig(max_num_seqs=0)
    with pytest.raises(ValueError, match="max_num_batched_tokens must be at least 1, not 0"):
        SchedulerConfig(max_num_batched_tokens=0)
    with pytest.raises(ValueError, match="max_waiting must be at least 0, not -1"):
        SchedulerConfig(max_waiting=-1)
