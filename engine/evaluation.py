"""Perplexity of one model, and how far its predictions are from another's, over windows of token ids.

Both run as they are served: same kernels, same quantization. `python -m distllm.engine.evaluation` reads an
EvaluationRequest as JSON and writes an Evaluation or a Refusal: a program of its own, so that `distllm eval` need
not import torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.child_program import answer
from distllm.engine.config import EngineConfig
from distllm.engine.evaluation_report import Evaluation, EvaluationRequest
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.factory import build_executor
from distllm.engine.interface import BLOCK_SIZE, BlockId, SequenceChunk, SequenceId
from distllm.engine.pool_size import OutOfMemory

Predict = Callable[[Sequence[int]], Tensor]
"""Logits after each token of a window: float32 [num_tokens, vocab_size]."""

_ROWS_AT_ONCE = 256


def evaluate(request: EvaluationRequest) -> Evaluation:
    """Load the models and run every window. Raises what loading raises, and ValueError for another vocabulary."""
    model = _load(request.model, request.windows)
    if request.against is None:
        return score(model, None, request.windows)
    return score(model, _load(request.against, request.windows), request.windows)


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


def _load(config: EngineConfig, windows: Sequence[Sequence[int]]) -> Predict:
    num_blocks = -(-max(map(len, windows)) // BLOCK_SIZE)
    sized = replace(config, num_blocks=num_blocks, max_model_len=num_blocks * BLOCK_SIZE)
    executor = build_executor(sized, lambda _activity, _fraction: None)
    assert isinstance(executor, LocalExecutor)
    table = [BlockId(block) for block in range(num_blocks)]
    runner = executor.runner

    def predict(window: Sequence[int]) -> Tensor:
        blocks = table[: -(-len(window) // BLOCK_SIZE)]
        chunk = SequenceChunk(SequenceId(0), window, 0, blocks, None)
        return runner.forward(build_step_tensors([chunk], range(len(window))))

    return predict


if __name__ == "__main__":
    answer(EvaluationRequest, evaluate, (CheckpointError, OutOfMemory, ValueError))
