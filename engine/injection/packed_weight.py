"""A weight that lives in the CPU kernels' panels and stands in for the dense one in transformers' modules."""

import torch
from torch import Tensor

from distllm.engine.injection.elementwise import VECTOR_RUN
from distllm.engine.kernels.ops import CpuKernels
from distllm.engine.kernels.packed import PackedLinear
from distllm.engine.kernels.quantized import QuantizedPanels, quantized_linear, quantized_rows
from distllm.engine.weight_stand_in import WeightStandIn

Panels = PackedLinear | QuantizedPanels


class PackedWeight(WeightStandIn):
    """A weight [out_features, in_features], or rows of one where several were packed as one.

    `is_transposed` shows it as [in_features, out_features], as Conv1D keeps its weight.
    """

    def __init__(
        self,
        kernels: CpuKernels,
        panels: Panels,
        rows: slice | None = None,
        *,
        is_transposed: bool = False,
    ) -> None:
        self.kernels = kernels
        self.panels = panels
        self.rows = rows
        self.is_transposed = is_transposed

    @property
    def shape(self) -> torch.Size:
        num_rows = self.panels.out_features if self.rows is None else self.rows.stop - self.rows.start
        sizes = (num_rows, self.panels.in_features)
        return torch.Size(reversed(sizes) if self.is_transposed else sizes)

    @property
    def dtype(self) -> torch.dtype:
        return self.panels.dtype

    @property
    def device(self) -> torch.device:
        return self.panels.device

    @property
    def num_bytes(self) -> int:
        return self.panels.num_bytes

    def float(self) -> "PackedWeight":
        """Itself: the kernels multiply float32 inputs with the weight's exact values."""
        return self

    def to(self, dtype: torch.dtype) -> "PackedWeight":
        if dtype not in (self.dtype, torch.float32):
            raise TypeError(f"a packed weight of {self.dtype} cannot become {dtype}")
        return self

    def type(self, dtype: torch.dtype) -> "PackedWeight":
        return self.to(dtype)

    def project(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.multiply(x, bias)

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = self._rows_of(x)
        if self.rows is None:
            output = self._multiply(rows, bias, _empty_rows(rows, self.panels.out_features))
        else:
            output = self._multiply(rows)[:, self.rows]
            output = output if bias is None else output + bias
        return output.view(*x.shape[:-1], output.shape[-1])

    def project_to_float32(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> contiguous float32 [..., out_features]: sums before they are rounded."""
        assert self.rows is None, "part of a fused weight"
        rows = self._rows_of(x)
        output = torch.empty(rows.shape[0], self.panels.out_features)
        return self._multiply(rows, None, output).view(*x.shape[:-1], -1)

    def look_up(self, ids: Tensor) -> Tensor:
        """Rows of the weight, as they were packed, or dequantized: int64 [...] -> [..., in_features]."""
        first = 0 if self.rows is None else self.rows.start
        flat = ids.reshape(-1) + first
        if isinstance(self.panels, QuantizedPanels):
            rows = quantized_rows(self.panels, flat)
        else:
            rows = self.kernels.linear_rows(self.panels, flat)
        return rows.view(*ids.shape, rows.shape[-1])

    def _rows_of(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [num_rows, in_features], each row contiguous."""
        rows = x.reshape(-1, self.panels.in_features)
        return rows if rows.stride(-1) == 1 else rows.contiguous()

    def _multiply(self, rows: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        if isinstance(self.panels, QuantizedPanels):
            return quantized_linear(self.kernels, rows, self.panels, bias, out)
        return self.kernels.linear(rows, self.panels, bias, out)


def _empty_rows(x: Tensor, width: int) -> Tensor:
    """Room for [num_rows, width] in x's type, rows spaced so that torch's elementwise loops start anew at each."""
    return x.new_empty(x.shape[0], width + -width % VECTOR_RUN)[:, :width]
