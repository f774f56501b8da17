"""Softmax over the vocabulary whose bits depend on the row alone."""

import torch
from torch import Tensor

_CUDA_VECTOR = 4
"""float32 values that torch's CUDA softmax loads at once: a row that starts between two loads is summed in
another order."""


def softmax_into(target: Tensor, logits: Tensor) -> Tensor:
    """Fill `target` with each row's probabilities, one thread (CPU) or one block of threads (CUDA) to a row.

    Both float32 [rows, vocab]. Returns `target`.
    """
    if not _is_misaligned(logits):
        return torch.softmax(logits, dim=-1, out=target)
    return target.copy_(torch.softmax(_aligned(logits), dim=-1)[:, : logits.shape[-1]])


def log_softmax(logits: Tensor) -> Tensor:
    """float32 [rows, vocab] -> natural log-probabilities, in the way of `softmax_into`."""
    if not _is_misaligned(logits):
        return torch.log_softmax(logits, dim=-1)
    return torch.log_softmax(_aligned(logits), dim=-1)[:, : logits.shape[-1]]


def _is_misaligned(logits: Tensor) -> bool:
    return logits.is_cuda and bool(logits.shape[-1] % _CUDA_VECTOR)


def _aligned(logits: Tensor) -> Tensor:
    return torch.nn.functional.pad(logits, (0, -logits.shape[-1] % _CUDA_VECTOR), value=-torch.inf)
