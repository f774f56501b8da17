"""Linear layers over quantized weights: packing into the kernels' panels, products, and rows read back.

The layout is that of src/quantized.h. Row-invariant, as everything here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from distllm.engine.kernels.checks import DTYPE_CODES, check_bias, check_indices, check_output, check_rows
from distllm.engine.kernels.ops import CpuKernels
from distllm.engine.kernels.packed import Bf16Variant
from distllm.engine.quantization.tensor import GROUP_MULTIPLE, CodeFormat, QuantizedTensor

FORMATS: dict[CodeFormat, int] = {"int8": 0, "int4": 1, "fp8": 2}  # as quantized.h numbers them
PRODUCTS: dict[Bf16Variant, int] = {"fma": 0, "dot": 1}  # as quantized_span.h numbers them
_PANEL_WIDTH = 16


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedPanels:
    """A quantized weight [out_features, in_features] in panels of sixteen output features, padded.

    `variant` fixes the order of its sums, as it does for PackedLinear. `input_order` says which input each column
    is multiplied with, None: the one of its number.
    """

    codes: Tensor  # uint8 [panels, padded inputs / c, 16, 4]: words of c codes
    scales: Tensor  # [panels, groups, 16]
    zeros: Tensor | None  # uint8 [panels, groups, 16]
    format: CodeFormat
    out_features: int
    in_features: int
    dtype: torch.dtype
    variant: Bf16Variant
    is_dynamic: bool
    input_order: Tensor | None

    @property
    def num_groups(self) -> int:
        return self.scales.shape[1]

    @property
    def group_size(self) -> int:
        return -(-self.in_features // self.num_groups)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def num_bytes(self) -> int:
        parts = (self.codes, self.scales, self.zeros, self.input_order)
        return sum(part.nbytes for part in parts if part is not None)


def pack_quantized(kernels: CpuKernels, tensor: QuantizedTensor) -> QuantizedPanels:
    """The panels of `tensor`. Raises ValueError where its groups are no multiple of eight inputs."""
    if tensor.num_groups > 1 and tensor.in_features // tensor.num_groups % GROUP_MULTIPLE:
        raise ValueError(
            f"weight: groups of {tensor.in_features // tensor.num_groups} inputs have no kernel; they must be a "
            f"multiple of {GROUP_MULTIPLE}"
        )
    return QuantizedPanels(
        _pack_codes(kernels, tensor.codes, 4 if tensor.format == "int4" else 8),
        _pack_groups(tensor.scales),
        None if tensor.zeros is None else _pack_groups(tensor.zeros),
        tensor.format,
        tensor.out_features,
        tensor.in_features,
        tensor.dtype,
        kernels.bf16_variant if tensor.dtype == torch.bfloat16 else "fma",
        tensor.is_dynamic,
        tensor.input_order,
    )


def quantized_linear(
    kernels: CpuKernels,
    x: Tensor,
    panels: QuantizedPanels,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [T, K] float32 or bf16 times the weight [N, K], plus bias [N]: [T, N] of x's dtype, or of out's."""
    if panels.input_order is not None:
        x = x[:, panels.input_order]
    check_rows("x", x, panels.in_features)
    check_bias(bias, panels.out_features)
    out = check_output(out, x, panels.out_features)
    kernels.call(
        "quantized_linear",
        *(PRODUCTS[panels.variant], FORMATS[panels.format], panels.is_dynamic),
        *(x.data_ptr(), x.stride(0), DTYPE_CODES[x.dtype], panels.codes.data_ptr()),
        *(panels.scales.data_ptr(), DTYPE_CODES[panels.scales.dtype]),
        *(None if panels.zeros is None else panels.zeros.data_ptr(), panels.group_size),
        *((None, 0) if bias is None else (bias.data_ptr(), DTYPE_CODES[bias.dtype])),
        *(out.data_ptr(), out.stride(0), DTYPE_CODES[out.dtype]),
        *(x.shape[0], panels.in_features, panels.out_features),
    )
    return out


def quantized_rows(panels: QuantizedPanels, ids: Tensor) -> Tensor:
    """Rows `ids` [T] (int64) of the weight in its own type: [T, K]."""
    check_indices("ids", ids, torch.int64, ids.numel())
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= panels.out_features):
        raise ValueError(f"ids: rows run from 0 to {panels.out_features - 1}")
    panel, lane = ids // _PANEL_WIDTH, ids % _PANEL_WIDTH
    codes = panels.codes[panel, :, lane].flatten(1)
    codes = codes[:, : panels.in_features // 2 if panels.format == "int4" else panels.in_features]
    zeros = None if panels.zeros is None else panels.zeros[panel, :, lane]
    rows = QuantizedTensor(
        codes, panels.scales[panel, :, lane], zeros, panels.format, panels.dtype, panels.input_order
    )
    return rows.dequantize()


def _pack_codes(kernels: CpuKernels, codes: Tensor, bits: int) -> Tensor:
    """uint8 [N, bytes of K codes] -> [panels, words, 16, 4]."""
    bytes_multiple = GROUP_MULTIPLE * bits // 8
    padded = functional.pad(codes, (0, -codes.shape[1] % bytes_multiple, 0, -codes.shape[0] % _PANEL_WIDTH))
    words = padded.view(-1, _PANEL_WIDTH, padded.shape[1] // 4, 4).transpose(1, 2)
    return kernels.empty(*words.shape, dtype=torch.uint8).copy_(words)


def _pack_groups(values: Tensor) -> Tensor:
    """[N, groups] -> [panels, groups, 16], zeros behind."""
    padded = functional.pad(values, (0, 0, 0, -values.shape[0] % _PANEL_WIDTH))
    return padded.view(-1, _PANEL_WIDTH, values.shape[1]).transpose(1, 2).contiguous()
