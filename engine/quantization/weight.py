"""A quantized weight that stands in for the dense one in transformers' modules, in plain torch.

Serves where there are no kernels, and holds what a quantized checkpoint stores until kernels pack it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distllm.engine.quantization.tensor import QuantizedTensor
from distllm.engine.weight_stand_in import WeightStandIn


class QuantizedWeight(WeightStandIn):
    """A weight [out_features, in_features], made by `load` when it is first used.

    `is_transposed` shows it as [in_features, out_features], as Conv1D keeps its weight.
    """

    def __init__(
        self,
        load: Callable[[], QuantizedTensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        is_transposed: bool = False,
    ) -> None:
        self.load = load
        self.dtype = dtype
        self.is_transposed = is_transposed
        self._shape = shape

    @classmethod
    def of(cls, tensor: QuantizedTensor, *, is_transposed: bool = False) -> "QuantizedWeight":
        shape = (tensor.out_features, tensor.in_features)
        return cls(lambda: tensor, shape, tensor.dtype, is_transposed=is_transposed)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(reversed(self._shape) if self.is_transposed else self._shape)

    @cached_property
    def tensor(self) -> QuantizedTensor:
        """Made once and kept; who needs it only once calls `load`."""
        return self.load()

    @property
    def device(self) -> torch.device:
        return self.tensor.codes.device

    @property
    def num_bytes(self) -> int:
        return self.tensor.num_bytes

    def to(self, *_: Any, **__: Any) -> "QuantizedWeight":
        """Itself: it is dequantized in the type of what it meets."""
        return self

    @property
    def dense_bytes(self) -> int:
        """What the weight would take if it were not quantized."""
        return math.prod(self._shape) * self.dtype.itemsize

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        inputs = _rounded(x) if self.tensor.is_dynamic else x
        return functional.linear(inputs, self.tensor.dequantize(x.dtype), bias)

    def look_up(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        zeros = None if self.tensor.zeros is None else self.tensor.zeros[flat]
        rows = replace(self.tensor, codes=self.tensor.codes[flat], scales=self.tensor.scales[flat], zeros=zeros)
        return rows.dequantize().view(*ids.shape, rows.in_features)


def _rounded(x: Tensor) -> Tensor:
    """Each row as the nearest of 255 whole numbers times a scale of its own, in x's type."""
    rows = x.float()
    scales = rows.abs().amax(-1, keepdim=True) / 127
    return (rows / scales.clamp(min=1e-30)).round_().mul_(scales).to(x.dtype)
