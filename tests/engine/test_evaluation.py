"""Perplexity and divergence against numbers made by hand, and what quantization costs the embedded model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from distllm.engine.child_program import Refusal
from distllm.engine.config import EngineConfig
from distllm.engine.embedded import checkpoint_path
from distllm.engine.embedded.held_out import held_out_texts
from distllm.engine.evaluation import evaluate, score
from distllm.engine.evaluation_report import Evaluation, EvaluationRequest, run_evaluation
from distllm.engine.quantization.config import QuantizationConfig


def fixed(*probabilities: float) -> "FixedModel":
    return FixedModel(torch.tensor(probabilities).log())


class FixedModel:
    """Predicts the same distribution after every token."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def __call__(self, window: Sequence[int]) -> Tensor:
        return self._logits.expand(len(window), -1)


def test_figures_are_means_over_the_predicted_tokens() -> None:
    windows = [[0, 0, 1], [2, 0]]
    result = score(fixed(0.5, 0.25, 0.25), fixed(0.25, 0.5, 0.25), windows)
    assert result.num_tokens == 3
    assert result.perplexity == pytest.approx((2 * 4 * 2) ** (1 / 3))
    assert result.reference_perplexity == pytest.approx((4 * 2 * 4) ** (1 / 3))
    assert result.divergence == pytest.approx(0.25 * math.log(0.5) + 0.5 * math.log(2))
    assert result.agreement == 0.0


def test_without_a_reference_there_is_perplexity_alone() -> None:
    result = score(fixed(0.5, 0.5), None, [[0, 1]])
    assert result == Evaluation(1, result.perplexity)
    assert result.perplexity == pytest.approx(2.0)


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="vocabularies of 2 and 3 tokens cannot be compared"):
        score(fixed(0.5, 0.5), fixed(0.5, 0.25, 0.25), [[0, 1]])


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 0.005), ({"dynamic_activations": True}, 0.005), ({"group_size": 32}, 0.03), ({"symmetric": False}, 0.03)],
    ids=["int8", "w8a8", "int4", "int4 with zero points"],
)
def test_quantization_costs_the_embedded_model_little(options: dict[str, int], most: float) -> None:
    """The limits that were promised: 0.5 % of perplexity with INT8, 3 % with INT4 in groups of 32."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint_path())
    windows = [tokenizer.encode(text + "<|endoftext|>") for text in held_out_texts(30, seed=0)]
    quantization = QuantizationConfig.named("int8" if most < 0.01 else "int4", **options)  # type: ignore[arg-type]
    dense = EngineConfig(model=str(checkpoint_path()), device="cpu", num_threads=2)
    quantized = EngineConfig(model=dense.model, device="cpu", num_threads=2, quantization=quantization)
    result = run_evaluation(EvaluationRequest(quantized, dense, windows))
    assert isinstance(result, Evaluation)
    assert result.reference_perplexity is not None
    assert result.divergence is not None
    assert result.agreement is not None
    assert result.perplexity < (1 + most) * result.reference_perplexity
    assert 0 < result.divergence < most
    assert 0.95 < result.agreement < 1


def test_a_model_over_ranks_is_compared_with_the_whole_one(checkpoint: Callable[[str], Path]) -> None:
    whole = EngineConfig(model=str(checkpoint("llama")), device="cpu", dtype="float32", num_threads=1)
    windows = [list(range(5, 45)), [7, 3, 9]]
    result = evaluate(EvaluationRequest(whole, replace(whole, tensor_parallel_size=2), windows))
    assert result.reference_perplexity == pytest.approx(result.perplexity, rel=1e-4)
    assert result.divergence == pytest.approx(0, abs=1e-6)
    assert result.agreement == 1.0


def test_what_cannot_be_loaded_is_refused_in_one_line() -> None:
    request = EvaluationRequest(EngineConfig(model="/no/such/directory"), None, [[1, 2]])
    result = run_evaluation(request)
    assert isinstance(result, Refusal)
    assert "/no/such/directory" in result.reason
