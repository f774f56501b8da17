"""Sampling as users see it: greedy, temperature, distribution, bad rows."""

import math

import pytest
import torch

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling.sampler import Sampler
from distllm.engine.sampling_params import SamplingParams

VOCAB_SIZE = 301


def random_logits(num_rows: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(11)) * scale


def tokens_of(logits: torch.Tensor, params: SamplingParams, seed: int = 0) -> list[int | None]:
    specs = [SampleSpec(params, seed, index) for index in range(len(logits))]
    return [token.token_id for token in Sampler().sample(logits.clone(), specs)]


def test_no_rows_give_no_tokens() -> None:
    assert Sampler().sample(torch.empty(0, VOCAB_SIZE), []) == []


def test_greedy_takes_the_largest_logit() -> None:
    logits = random_logits(50)
    assert tokens_of(logits, SamplingParams(temperature=0.0)) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=1, temperature=2.0),
        SamplingParams(top_p=1e-9),
        SamplingParams(min_p=1.0),
        SamplingParams(temperature=1e-6, top_p=0.9),
        SamplingParams(temperature=5e-324),
    ],
    ids=str,
)
def test_the_tightest_settings_equal_greedy(params: SamplingParams) -> None:
    logits = random_logits(50)
    assert tokens_of(logits, params) == logits.argmax(-1).tolist()


def test_top_k_of_one_takes_the_largest_of_logits_a_hair_apart() -> None:
    logits = torch.full((1, 70), 0.1)
    logits[0, 50] = torch.nextafter(logits[0, 50], torch.tensor(1.0))
    assert tokens_of(logits, SamplingParams(top_k=1, temperature=2.0)) == [50]


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits_and_tiny_temperatures_do_not_overflow(scale: float) -> None:
    logits = random_logits(20, scale)
    assert tokens_of(logits, SamplingParams(temperature=1e-6)) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(), 12),
        (SamplingParams(temperature=2.0), 12),
        (SamplingParams(temperature=0.5), 12),
        (SamplingParams(top_k=5), 5),
        (SamplingParams(top_k=8, temperature=1.5, min_p=0.001), 8),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams, kept: int) -> None:
    logits = torch.linspace(0.0, -3.0, 12)
    expected = torch.softmax(logits[:kept].double() / params.temperature, dim=-1)
    counts, sampler, num_draws = torch.zeros(12), Sampler(), 20_480
    for start in range(0, num_draws, 1024):
        specs = [SampleSpec(params, seed=99, index=index) for index in range(start, start + 1024)]
        drawn = [token.token_id for token in sampler.sample(logits.repeat(1024, 1), specs)]
        counts += torch.bincount(torch.tensor(drawn), minlength=12)
    assert counts[kept:].sum() == 0
    expected_counts = expected * num_draws
    chi_square = float(((counts[:kept] - expected_counts) ** 2 / expected_counts).sum())
    assert chi_square < (kept - 1) + 5 * math.sqrt(2 * (kept - 1))


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_p=0.9)])
def test_a_row_without_a_distribution_fails_alone(params: SamplingParams) -> None:
    logits = random_logits(6)
    whole = tokens_of(logits, params)
    logits[1, 7] = torch.nan
    logits[2] = -torch.inf
    logits[4, 300] = torch.inf
    specs = [SampleSpec(params, 0, index) for index in range(6)]
    tokens = Sampler().sample(logits, specs)
    for row in (1, 2, 4):
        assert tokens[row].token_id is None
        assert "not numbers" in str(tokens[row].error)
    for row in (0, 3, 5):
        assert tokens[row].error is None
        assert tokens[row].token_id == whole[row]


def test_a_failed_row_has_no_logprobs_and_spoils_no_others() -> None:
    logits = random_logits(2)
    logits[0] = torch.nan
    specs = [SampleSpec(SamplingParams(temperature=0.0, logprobs=2), 0, 0)] * 2
    failed, sound = Sampler().sample(logits, specs)
    assert failed.logprobs is None
    assert sound.logprobs is not None
    assert sound.logprobs.top_ids[0] == sound.token_id


def test_parameters_are_those_of_each_step_though_tensors_are_kept() -> None:
    sampler, logits = Sampler(), random_logits(2)
    greedy, free = SamplingParams(temperature=0.0), SamplingParams(temperature=2.0)
    best = logits.argmax(-1).tolist()
    for params in ([greedy, greedy], [greedy, free], [free, greedy], [greedy, greedy]):
        specs = [SampleSpec(p, seed=4, index=0) for p in params]
        tokens = sampler.sample(logits.clone(), specs)
        for row, p in enumerate(params):
            assert (tokens[row].token_id == best[row]) == p.is_greedy
    wider = torch.zeros(1, VOCAB_SIZE + 40)
    wider[0, -1] = 1.0
    assert sampler.sample(wider, [SampleSpec(greedy, 0, 0)])[0].token_id == VOCAB_SIZE + 39
