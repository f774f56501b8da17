"""top_k, top_p and min_p: against a plain sort, and the two ways of filtering against each other."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling import filtered_draw, sampler
from distllm.engine.sampling.candidates import MAX_CANDIDATES
from distllm.engine.sampling.philox import uniforms
from distllm.engine.sampling.sampler import Sampler
from distllm.engine.sampling_params import SamplingParams

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]

SLACK = 2e-6
"""What float32 softmax may differ from float64, in cumulative probability."""


def kept_probabilities(logits: list[float], params: SamplingParams, top_p: float) -> list[float]:
    """Straight from the definition, in float64: probability of each token id after all filters."""
    peak = max(logits)
    likely = [math.exp((logit - peak) / params.temperature) for logit in logits]
    ranked = sorted(range(len(likely)), key=lambda token_id: (-logits[token_id], token_id))
    ranked = [token_id for token_id in ranked if likely[token_id] >= params.min_p * (1 - SLACK)]
    ranked = ranked[: params.top_k]
    total, run, kept = sum(likely[token_id] for token_id in ranked), 0.0, []
    for token_id in ranked:
        if run >= top_p * total:
            break
        run += likely[token_id]
        kept.append(token_id)
    return [likely[token_id] / run if token_id in kept else 0.0 for token_id in range(len(likely))]


def is_inverse_of_cdf(token_id: int, uniform: float, probabilities: list[float]) -> bool:
    before = sum(probabilities[:token_id])
    return probabilities[token_id] > 0.0 and before - SLACK <= uniform <= before + probabilities[token_id] + SLACK


def params_with(least_top_k: int, most_top_k: int) -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from([1e-6, 0.1, 0.7, 1.0, 1.3, 2.0]),
        top_k=st.none() | st.integers(least_top_k, most_top_k),
        top_p=st.just(1.0) | st.floats(0.01, 1.0),
        min_p=st.just(0.0) | st.sampled_from([0.01, 0.05, 0.3, 0.99]),
    )


@st.composite
def rows_of_logits(draw: st.DrawFn, vocab_size: int, num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rows = torch.randn(num_rows, vocab_size, generator=generator) * draw(st.sampled_from([0.01, 1.0, 5.0]))
    if draw(st.booleans()):
        rows = (rows * 4).round() / 4  # many ties, as bf16 logits have
    if draw(st.booleans()):
        rows[:, vocab_size // 2] = -torch.inf
    return rows


@settings(max_examples=150, deadline=None)
@given(data=st.data(), vocab_size=st.integers(2, 80), seed=st.integers(0, 2**64 - 1))
def test_a_token_is_the_inverse_of_the_filtered_distribution(
    data: st.DataObject, vocab_size: int, seed: int
) -> None:
    logits = data.draw(rows_of_logits(vocab_size, num_rows=4))
    params = data.draw(st.lists(params_with(1, 90), min_size=4, max_size=4))
    specs = [SampleSpec(p, seed, index) for index, p in enumerate(params)]
    tokens = Sampler().sample(logits.clone(), specs)
    for row, spec, token in zip(logits.tolist(), specs, tokens, strict=True):
        assert token.token_id is not None
        uniform = float(uniforms([spec.seed], [spec.index])[0])
        allowed = [
            kept_probabilities(row, spec.params, top_p=spec.params.top_p + slack) for slack in (0.0, -SLACK, SLACK)
        ]
        assert any(is_inverse_of_cdf(token.token_id, uniform, probabilities) for probabilities in allowed)


def tokens_of(logits: torch.Tensor, specs: list[SampleSpec]) -> list[int | None]:
    return [token.token_id for token in Sampler().sample(logits.clone(), specs)]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), vocab_size=st.integers(300, 3000), seed=st.integers(0, 1000))
def test_looking_at_the_best_tokens_equals_sectioning_the_whole_vocabulary(
    data: st.DataObject, vocab_size: int, seed: int, device: str
) -> None:
    logits = data.draw(rows_of_logits(vocab_size, num_rows=6)).to(device)
    params = data.draw(st.lists(params_with(MAX_CANDIDATES + 1, 400), min_size=6, max_size=6))
    specs = [SampleSpec(p, seed, index) for index, p in enumerate(params)]
    usual = tokens_of(logits, specs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtered_draw, "SHORTLIST", 1)
        short_first = tokens_of(logits, specs)
        patch.setattr(filtered_draw, "SHORTLIST", vocab_size)
        listed = tokens_of(logits, specs)
    assert short_first == listed == usual


@pytest.mark.parametrize("top_k", [2, 100, 1500])
def test_top_k_keeps_exactly_k_of_equal_tokens_by_smaller_id(top_k: int) -> None:
    params = SamplingParams(top_k=top_k)
    specs = [SampleSpec(params, seed=5, index=index) for index in range(64)]
    for _ in range(2):
        drawn = tokens_of(torch.zeros(64, 4000), specs)
        specs = [dataclasses.replace(spec, index=spec.index + 64) for spec in specs]
        assert all(token_id is not None and token_id < top_k for token_id in drawn)
    assert len(set(drawn)) > 1


def test_top_p_keeps_the_shortest_run_that_reaches_it_by_smaller_id_among_equals() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.2, 0.4, 0.1]])).repeat(200, 1)
    specs = [SampleSpec(SamplingParams(top_p=0.55), seed=1, index=index) for index in range(200)]
    assert set(tokens_of(logits, specs)) == {1, 3}


def test_min_p_comes_first_and_top_p_is_of_what_it_leaves() -> None:
    logits = torch.log(torch.tensor([[0.05, 0.4, 0.3, 0.2, 0.05]])).repeat(200, 1)
    params = SamplingParams(min_p=0.45, top_p=0.9)  # min_p leaves 0.4, 0.3, 0.2: of these top_p needs all
    assert set(tokens_of(logits, [SampleSpec(params, 1, index) for index in range(200)])) == {1, 2, 3}
    params = SamplingParams(min_p=0.45, top_p=0.75)  # 0.7 / 0.9 is enough
    assert set(tokens_of(logits, [SampleSpec(params, 1, index) for index in range(200)])) == {1, 2}


def test_a_flat_vocabulary_is_sectioned_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(9, 5003, generator=torch.Generator().manual_seed(0)) * 0.1
    specs = [SampleSpec(SamplingParams(top_p=0.8), seed, 0) for seed in range(9)]
    at_once = tokens_of(logits, specs)
    monkeypatch.setattr(filtered_draw, "_MAX_SECTIONED_AT_ONCE", {"cpu": 2 * 5003})
    monkeypatch.setattr(sampler, "_MAX_LOGITS_AT_ONCE", 4 * 5003)
    assert tokens_of(logits, specs) == at_once
