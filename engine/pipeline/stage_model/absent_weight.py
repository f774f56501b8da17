"""What stands in for a matrix that another stage holds."""

import torch
from torch import Tensor

from distllm.engine.weight_stand_in import WeightStandIn


class AbsentWeight(WeightStandIn):
    """A weight of `shape` without content. What comes of it is zeros of the right shape, which nothing reads."""

    _is_hf_initialized = True  # or transformers would draw it at random, as it does with what is missing

    def __init__(self, shape: torch.Size, dtype: torch.dtype, *, is_transposed: bool) -> None:
        self.shape = shape
        self.dtype = dtype
        self.is_transposed = is_transposed

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        zeros = x.new_zeros(*x.shape[:-1], self.shape[1 if self.is_transposed else 0])
        return zeros if bias is None else zeros + bias

    def look_up(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, self.shape[1], dtype=self.dtype, device=ids.device)
