"""Log-probabilities are those of the raw logits, in float32, best first."""

import pytest
import torch

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling import logprobs as logprobs_module
from distllm.engine.sampling.logprobs import NonFiniteLogits, prompt_logprobs
from distllm.engine.sampling.sampler import Sampler
from distllm.engine.sampling_params import SamplingParams


def random_logits(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, 517, generator=torch.Generator().manual_seed(2)) * 4.0


def test_logprobs_are_of_the_raw_distribution_whatever_the_parameters() -> None:
    logits = random_logits(5)
    expected = torch.log_softmax(logits, dim=-1)
    params = SamplingParams(logprobs=4, temperature=0.3, top_k=2, logit_bias={9: 50.0}, repetition_penalty=1.5)
    specs = [SampleSpec(params, 0, index, history=[1, 2, 9], num_prompt_tokens=3) for index in range(5)]
    for row, token in enumerate(Sampler().sample(logits.clone(), specs)):
        assert token.logprobs is not None
        assert token.token_id == token.logprobs.token_id == 9
        assert token.logprobs.logprob == expected[row, 9].item()
        assert token.logprobs.top_ids == tuple(expected[row].topk(4).indices.tolist())
        assert token.logprobs.top_logprobs == tuple(expected[row].topk(4).values.tolist())


def test_each_row_gets_as_many_as_it_asked_for() -> None:
    wanted = [None, 0, 3, 20]
    specs = [SampleSpec(SamplingParams(logprobs=num, temperature=0.0), 0, 0) for num in wanted]
    tokens = Sampler().sample(random_logits(4), specs)
    assert tokens[0].logprobs is None
    assert [len(token.logprobs.top_ids) for token in tokens[1:] if token.logprobs] == [0, 3, 20]


def test_equal_logprobs_are_listed_by_smaller_id() -> None:
    logits = torch.zeros(1, 100)
    logits[0, 60:] = 1.0
    token = Sampler().sample(logits, [SampleSpec(SamplingParams(logprobs=3, temperature=0.0), 0, 0)])[0]
    assert token.logprobs is not None
    assert token.logprobs.top_ids == (60, 61, 62)


def test_a_vocabulary_smaller_than_what_was_asked_for_is_listed_whole() -> None:
    specs = [SampleSpec(SamplingParams(logprobs=20, temperature=0.0), 0, 0)]
    token = Sampler().sample(torch.tensor([[1.0, 3.0, 2.0]]), specs)[0]
    assert token.logprobs is not None
    assert token.logprobs.top_ids == (1, 2, 0)


def test_prompt_logprobs_score_every_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs_module, "_ROWS_AT_ONCE", 3)
    logits = random_logits(8)
    kept = logits.clone()
    targets = [0, 516, 5, 5, 100, 7, 8, 9]
    expected = torch.log_softmax(logits, dim=-1)
    scored = prompt_logprobs(logits, targets, num_top=2)
    assert [entry.token_id for entry in scored] == targets
    assert [entry.logprob for entry in scored] == [expected[row, t].item() for row, t in enumerate(targets)]
    assert [entry.top_ids for entry in scored] == [tuple(ids) for ids in expected.topk(2).indices.tolist()]
    assert torch.equal(logits, kept)


def test_prompt_logprobs_of_no_rows_are_none() -> None:
    assert prompt_logprobs(torch.empty(0, 10), [], num_top=1) == []


def test_prompt_logprobs_without_a_distribution_are_refused() -> None:
    logits = random_logits(2)
    logits[1, 3] = torch.nan
    with pytest.raises(NonFiniteLogits, match="not numbers"):
        prompt_logprobs(logits, [1, 1], num_top=0)
