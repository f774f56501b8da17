"""Perplexity of one model, and how far its predictions are from another's, over windows of token ids.

Both run as they are served: same kernels, same quantization. `python -m distllm.engine.evaluation` reads an
EvaluationRequest as JSON and writes an Evaluation or a Refusal: a program of its own, so that `distllm eval` need
not import torch.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from distllm.engine.child_program import answer
from distllm.engine.evaluation_report import Evaluation, EvaluationRequest
from distllm.engine.pipeline.staged_predictor import StagedPredictor
from distllm.engine.pipeline.wire.codec_names import PLAIN
from distllm.engine.predictor import LOADING_ERRORS, Predict, predictor, separate_predictor

_ROWS_AT_ONCE = 256


def evaluate(request: EvaluationRequest) -> Evaluation:
    """Load the models and run every window. Raises what loading raises, and ValueError for another vocabulary."""
    max_tokens = max(map(len, request.windows))
    if (stages := request.stages) is not None:
        staged = StagedPredictor(request.model, stages.num_stages, max_tokens)
        coded, plain = (partial(staged.predict, codec=codec) for codec in (stages.codec, PLAIN))
        return score(coded, plain, request.windows)
    if request.against is None:
        with predictor(request.model, max_tokens) as model:
            return score(model, None, request.windows)
    has_ranks = request.against.tensor_parallel_size != 1
    load = separate_predictor if has_ranks else predictor
    with load(request.against, max_tokens) as against, predictor(request.model, max_tokens) as model:
        return score(model, against, request.windows)


@torch.inference_mode()
def score(model: Predict, against: Predict | None, windows: Sequence[Sequence[int]]) -> Evaluation:
    """Of every token but the first of each window; divergences are of `model` from `against`, in nats."""
    totals = [0.0, 0.0, 0.0, 0.0]
    for window in windows:
        targets = torch.tensor(window[1:])
        own = model(window)[:-1]
        other = own if against is None else against(window)[:-1]
        if own.shape != other.shape:
            raise ValueError(f"vocabularies of {own.shape[1]} and {other.shape[1]} tokens cannot be compared")
        for values in _scores(own.to(targets.device), other.to(targets.device), targets):
            totals = [total + value for total, value in zip(totals, values, strict=True)]
    num_tokens = sum(len(window) - 1 for window in windows)
    own_loss, other_loss, divergence, agreement = (total / num_tokens for total in totals)
    if against is None:
        return Evaluation(num_tokens, math.exp(own_loss))
    return Evaluation(num_tokens, math.exp(own_loss), math.exp(other_loss), divergence, agreement)


def _scores(own: Tensor, other: Tensor, targets: Tensor) -> Iterator[tuple[float, float, float, float]]:
    """Sums over some rows at a time: both losses, the divergence, how often both have the same first choice."""
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        logs, reference = (functional.log_softmax(logits[rows].double(), dim=-1) for logits in (own, other))
        yield (
            functional.nll_loss(logs, targets[rows], reduction="sum").item(),
            functional.nll_loss(reference, targets[rows], reduction="sum").item(),
            functional.kl_div(logs, reference, reduction="sum", log_target=True).item(),
            float((logs.argmax(-1) == reference.argmax(-1)).sum()),
        )


if __name__ == "__main__":
    answer(EvaluationRequest, evaluate, LOADING_ERRORS)
