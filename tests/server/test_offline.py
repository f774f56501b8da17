"""Offline batches over an engine without a model: results, order, stop strings, errors, limits."""

import asyncio

import pytest

from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.batch_bar import BatchBar
from distllm.server.errors import ContextLengthExceeded, InvalidRequest
from distllm.server.generation_plan import GenerationPlan, Limits
from distllm.server.offline import PromptResult
from distllm.server.offline_batch import (
    EncodedPrompt,
    encode_conversations,
    encode_prompts,
    plan_batch,
    run_batch,
)
from distllm.server.protocol.fields import Prompt
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine

GREEDY = SamplingParams(temperature=0.0, max_tokens=5)


def plans_of(
    prompts: list[EncodedPrompt],
    params: SamplingParams | list[SamplingParams] = GREEDY,
    n: int = 1,
    stop: tuple[str, ...] = (),
) -> list[GenerationPlan]:
    return plan_batch(prompts, params, (0,), Limits(max_model_len=64, vocab_size=600), n, stop)


async def results_of(
    engine: FakeEngine, tokenizer: Tokenizer, plans: list[GenerationPlan], max_live: int = 8
) -> list[PromptResult]:
    with BatchBar(len(plans), is_shown=False) as bar:
        return await run_batch(engine, tokenizer, plans, max_live, bar)


async def run(
    engine: FakeEngine, tokenizer: Tokenizer, prompts: list[Prompt], params: SamplingParams = GREEDY
) -> list[PromptResult]:
    return await results_of(engine, tokenizer, plans_of(await encode_prompts(tokenizer, prompts), params))


async def test_results_come_in_the_order_of_the_prompts(engine: FakeEngine, byte_level: Tokenizer) -> None:
    prompts: list[Prompt] = ["Once upon a time", [9, 8, 7], "the lazy dog"]
    results = await run(engine, byte_level, prompts)
    assert [result.prompt for result in results] == ["Once upon a time", None, "the lazy dog"]
    assert results[1].prompt_token_ids == [9, 8, 7]
    assert results[1].completions[0].token_ids == [9, 8, 7, 9, 8]
    assert results[2].text == byte_level.decode(results[2].completions[0].token_ids)
    assert all(result.completions[0].finish_reason == "length" for result in results)
    assert engine.num_live == 0


async def test_n_sequences_of_a_prompt_are_its_completions(engine: FakeEngine, byte_level: Tokenizer) -> None:
    plans = plans_of([EncodedPrompt([9, 8, 7], None, "prompts[0]")], n=3)
    (result,) = await results_of(engine, byte_level, plans)
    assert [completion.index for completion in result.completions] == [0, 1, 2]
    assert [completion.token_ids[0] for completion in result.completions] == [9, 8, 7]


async def test_the_token_that_ends_an_answer_is_an_id_but_no_text(
    engine: FakeEngine, byte_level: Tokenizer
) -> None:
    (result,) = await run(engine, byte_level, [[9, 8, 0, 7]])
    assert result.completions[0].token_ids == [9, 8, 0]
    assert result.completions[0].finish_reason == "stop"
    assert result.text == byte_level.decode([9, 8])


async def test_ignore_eos_goes_on_past_the_end(engine: FakeEngine, byte_level: Tokenizer) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    (result,) = await run(engine, byte_level, [[9, 0, 7]], params)
    assert result.completions[0].token_ids == [9, 0, 7, 9, 0]


async def test_a_stop_string_ends_text_ids_and_logprobs_and_frees_the_engine(
    engine: FakeEngine, byte_level: Tokenizer
) -> None:
    prompts = await encode_prompts(byte_level, ["one two three"])
    params = SamplingParams(temperature=0.0, max_tokens=40, logprobs=1)
    (result,) = await results_of(engine, byte_level, plans_of(prompts, params, stop=("two",)))
    completion = result.completions[0]
    assert completion.text == "one "
    assert completion.finish_reason == "stop"
    assert "two" in byte_level.decode(completion.token_ids)
    assert "two" not in byte_level.decode(completion.token_ids[:-1])
    assert completion.logprobs is not None
    assert [scores.token_id for scores in completion.logprobs] == completion.token_ids
    assert engine.aborted == [(engine.requests[0].request_id, [0])]


async def test_each_prompt_may_have_parameters_of_its_own(engine: FakeEngine, byte_level: Tokenizer) -> None:
    prompts = await encode_prompts(byte_level, [[5, 6], [7, 8]])
    params = [SamplingParams(max_tokens=1, seed=3), SamplingParams(max_tokens=3)]
    results = await results_of(engine, byte_level, plans_of(prompts, params))
    assert [len(result.completions[0].token_ids) for result in results] == [1, 3]
    assert engine.requests[0].seed == 3


async def test_prompts_without_a_seed_get_different_ones(engine: FakeEngine, byte_level: Tokenizer) -> None:
    await run(engine, byte_level, [[5], [5], [5]], SamplingParams(max_tokens=1))
    assert len({request.seed for request in engine.requests}) == 3


async def test_prompt_logprobs_are_handed_on(engine: FakeEngine, byte_level: Tokenizer) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    (result,) = await run(engine, byte_level, [[9, 8, 7]], params)
    assert result.prompt_logprobs is not None
    assert [scores.token_id for scores in result.prompt_logprobs] == [8, 7]


async def test_a_sequence_that_fails_says_so_and_keeps_what_it_had(
    engine: FakeEngine, byte_level: Tokenizer
) -> None:
    engine.fail_after = 2
    results = await run(engine, byte_level, [[9, 8, 7], [6, 5, 4]])
    for result in results:
        assert result.completions[0].finish_reason == "error"
        assert result.completions[0].error == "the fake engine failed"
        assert len(result.completions[0].token_ids) == 2


@pytest.mark.parametrize(("n", "expected"), [(1, 3), (2, 1), (7, 1)])
async def test_no_more_sequences_are_live_than_the_engine_takes(
    engine: FakeEngine, byte_level: Tokenizer, n: int, expected: int
) -> None:
    most_live = 0
    submit = engine.submit

    def watched_submit(request: object) -> object:
        nonlocal most_live
        stream = submit(request)  # type: ignore[arg-type]
        most_live = max(most_live, engine.num_live)
        return stream

    engine.submit = watched_submit  # type: ignore[method-assign,assignment]
    plans = plans_of([EncodedPrompt([9, 8], None, "prompts") for _ in range(20)], n=n)
    assert len(await results_of(engine, byte_level, plans, max_live=3)) == 20
    assert most_live == expected


async def test_an_engine_that_is_lost_ends_the_whole_batch(engine: FakeEngine, byte_level: Tokenizer) -> None:
    engine.refusal = EngineUnavailable("the engine ended 6 times in a row")
    with pytest.raises(EngineUnavailable, match="6 times"):
        await run(engine, byte_level, [[9], [8]])
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_an_invalid_prompt_is_refused_by_name_before_anything_runs() -> None:
    sound = EncodedPrompt([1], None, "prompts[0]")
    with pytest.raises(InvalidRequest, match=r"prompts\[1\] holds token id 600"):
        plans_of([sound, EncodedPrompt([600], None, "prompts[1]")])
    with pytest.raises(ContextLengthExceeded, match="65 tokens"):
        plans_of([sound, EncodedPrompt([1] * 65, None, "prompts[1]")])


def test_a_default_length_yields_to_the_room_where_a_chosen_one_is_refused() -> None:
    prompts, limits = [EncodedPrompt([1] * 60, None, "prompts[0]")], Limits(max_model_len=64, vocab_size=600)
    (plan,) = plan_batch(prompts, GREEDY, (0,), limits, 1, (), are_defaults=True)
    assert plan.prompts[0].params.max_tokens == 4
    with pytest.raises(ContextLengthExceeded, match="max_tokens to 4"):
        plan_batch(prompts, GREEDY, (0,), limits, 1, ())


def test_as_many_parameters_as_prompts_are_needed() -> None:
    prompts = [EncodedPrompt([1], None, "prompts[0]"), EncodedPrompt([2], None, "prompts[1]")]
    with pytest.raises(InvalidRequest, match="3 values for 2 prompts"):
        plans_of(prompts, [GREEDY] * 3)
    with pytest.raises(InvalidRequest, match="n must be a whole number of at least 1"):
        plans_of(prompts, n=0)


async def test_an_empty_prompt_is_the_start_of_a_document(byte_level: Tokenizer) -> None:
    (prompt,) = await encode_prompts(byte_level, [""])
    assert prompt.token_ids == [byte_level.document_start]


async def test_conversations_become_prompts_by_the_chat_template(byte_level: Tokenizer) -> None:
    conversation = [{"role": "user", "content": "Spaces matter."}]
    (prompt,) = await encode_conversations(byte_level, [conversation], {})
    assert byte_level.decode(prompt.token_ids) == "<|user|>Spaces matter.<|end|>\n<|assistant|>"


async def test_a_wrong_message_is_refused_with_its_place(byte_level: Tokenizer) -> None:
    sound = [{"role": "user", "content": "hello"}]
    with pytest.raises(InvalidRequest, match=r"^conversations\[1\]: messages\[0\].*content"):
        await encode_conversations(byte_level, [sound, [{"role": "user"}]], {})
