"""Outputs of a prompt's sequences may come in any order; the echo waits for the prompt's scores."""

from typing import Any

from distllm.engine.interface import TokenLogprobs
from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.messages import SequenceOutput
from distllm.server.choice import Choice
from distllm.server.generation_plan import GenerationPlan, PromptPlan
from distllm.server.metrics import Metrics
from distllm.server.prompt_run import PromptRun
from distllm.server.prompt_text import read_prompt_now
from distllm.server.routing.forecast import Forecast
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine


class NoStream:
    def abort_sequence(self, index: int) -> None:
        raise AssertionError("nothing is to be aborted")


def make_run(tokenizer: Tokenizer, prompt_ids: list[int]) -> PromptRun:
    params = SamplingParams(max_tokens=4, logprobs=0, prompt_logprobs=0)
    prompt = PromptPlan(token_ids=prompt_ids, text=None, params=params)
    plan = GenerationPlan(prompts=(prompt,), n=2, num_sampled=2, echo=True, num_top_logprobs=0)
    text = read_prompt_now(tokenizer, plan, prompt)
    choices = [Choice(index, plan, prompt, text, tokenizer) for index in range(2)]
    metrics = Metrics(FakeEngine(600), "tiny")
    stream: Any = NoStream()
    with metrics.observe(len(prompt_ids), 2, Forecast("local", "only", "it is alone")) as observer:
        return PromptRun(choices, stream, observer, plan, prompt)


def output(index: int, token_id: int, **fields: Any) -> SequenceOutput:
    return SequenceOutput("r", index, [token_id], logprobs=[TokenLogprobs(token_id, -1.0)], **fields)


async def test_outputs_that_overtake_the_prompt_s_scores_wait_for_them(byte_level: Tokenizer) -> None:
    prompt_ids = await byte_level.encode("the fox")
    run = make_run(byte_level, prompt_ids)
    assert run.accept(output(1, prompt_ids[0])) == []
    scores = [TokenLogprobs(token_id, -2.0) for token_id in prompt_ids[1:]]
    deltas = run.accept(output(0, prompt_ids[1], prompt_logprobs=scores))
    assert [delta.index for delta in deltas] == [0, 1, 0, 1]
    assert [delta.text for delta in deltas[:2]] == ["the fox", "the fox"]
    assert [token.scores for token in deltas[0].tokens] == [None, *scores]


async def test_a_prompt_of_one_token_has_no_scores_to_wait_for(byte_level: Tokenizer) -> None:
    prompt_ids = (await byte_level.encode("the fox"))[:1]
    run = make_run(byte_level, prompt_ids)
    deltas = run.accept(output(1, prompt_ids[0]))
    assert [token.scores for token in deltas[0].tokens] == [None]
    assert len(deltas) == 3
