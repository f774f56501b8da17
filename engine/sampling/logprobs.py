"""Log-probabilities of the model's raw distribution, before any bias, penalty or temperature."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distllm.engine.interface import TokenLogprobs
from distllm.engine.sampling.normalising import log_softmax
from distllm.engine.sampling.ranking import block_maxima, ranked_ids

_ROWS_AT_ONCE = 64


class NonFiniteLogits(ArithmeticError):
    """The model put out NaN, or no finite logit at all, where a distribution was asked for."""

    def __init__(self) -> None:
        super().__init__("the model put out logits that are not numbers; check its weights")


def prompt_logprobs(logits: Tensor, target_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Score the known next token of each row. Raises NonFiniteLogits.

    logits: float32 [rows, vocab], left as it is. target_ids: one for each row, within the vocabulary.
    """
    scored: list[TokenLogprobs] = []
    for start in range(0, len(target_ids), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        targets = target_ids[rows]
        distribution = log_softmax(logits[rows])
        if bool(distribution.isnan().any()):
            raise NonFiniteLogits
        scored += token_logprobs(distribution, targets, [num_top] * len(targets))
    return scored


def token_logprobs(distribution: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """What the log-probabilities `distribution`, float32 [rows, vocab], say of one token a row and of the best."""
    chosen = distribution.gather(-1, torch.tensor(token_ids, device=distribution.device).unsqueeze(-1))
    top_ids = ranked_ids(distribution, block_maxima(distribution), max(num_top))
    top_logprobs = distribution.gather(-1, top_ids).tolist()
    return [
        TokenLogprobs(token_id, logprob, tuple(ids[:num]), tuple(values[:num]))
        for token_id, logprob, ids, values, num in zip(
            token_ids, chosen.squeeze(-1).tolist(), top_ids.tolist(), top_logprobs, num_top, strict=True
        )
    ]
