"""Quantizes one weight by rounding to the nearest codes, some rows at a time."""

import torch
from torch import Tensor

from distllm.engine.quantization.config import QuantizationError, WeightScheme
from distllm.engine.quantization.tensor import MIDDLE, CodeFormat, QuantizedTensor, concatenate, pack_halves

_ELEMENTS_AT_ONCE = 1 << 20
_LEAST_SCALE = 1e-30


def check_divides(name: str, in_features: int, scheme: WeightScheme) -> None:
    """Raises QuantizationError where the groups of `scheme` do not divide the inputs of weight `name`."""
    if scheme.group_size is not None and in_features % scheme.group_size:
        fitting = [size for size in (32, 64, 128) if in_features % size == 0]
        remedy = f"choose {' or '.join(map(str, fitting))}" if fitting else "use int8 without groups"
        raise QuantizationError(
            f"group_size {scheme.group_size} does not divide the {in_features} inputs of {name}; {remedy}"
        )


def quantize(weight: Tensor, scheme: WeightScheme, dtype: torch.dtype | None = None) -> QuantizedTensor:
    """weight [out_features, in_features] of any floating type, strided; it will stand for one of `dtype`.

    Scales are of bfloat16 unless `dtype` is float32, and codes are chosen for the scales as stored. Raises
    QuantizationError where groups do not divide in_features.
    """
    check_divides("a weight", weight.shape[1], scheme)
    dtype = weight.dtype if dtype is None else dtype
    num_rows = max(1, _ELEMENTS_AT_ONCE // weight.shape[1])
    return concatenate([_quantize_rows(rows, scheme, dtype) for rows in torch.split(weight, num_rows)])


def _quantize_rows(weight: Tensor, scheme: WeightScheme, dtype: torch.dtype) -> QuantizedTensor:
    num_rows, in_features = weight.shape
    groups = weight.to(torch.float32, copy=True).view(num_rows, -1, scheme.group_size or in_features)
    scale_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    form: CodeFormat = "int4" if scheme.bits == 4 else "int8"
    if scheme.symmetric:
        scales, zeros = _symmetric_scales(groups, scheme.bits).to(scale_dtype), None
        middle: Tensor | int = MIDDLE[form]
    else:
        scales, zeros = _shifted_scales(groups, scheme.bits, scale_dtype)
        middle = zeros.unsqueeze(-1)
    codes = groups.div_(scales.float().unsqueeze(-1)).round_().add_(middle).clamp_(0, 2**scheme.bits - 1)
    flat = codes.to(torch.uint8).flatten(1).contiguous()  # a transposed weight's would be transposed
    return QuantizedTensor(
        pack_halves(flat) if form == "int4" else flat,
        scales.contiguous(),
        None if zeros is None else zeros.contiguous(),
        form,
        dtype,
        is_dynamic=scheme.dynamic_activations,
    )


def _symmetric_scales(groups: Tensor, bits: int) -> Tensor:
    """The least scale [rows, groups] under which no weight leaves -2^(bits-1) .. 2^(bits-1) - 1."""
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return torch.maximum(_divide(groups.amax(-1), most), _divide(groups.amin(-1), least)).clamp_(min=_LEAST_SCALE)


def _shifted_scales(groups: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales, and the codes of zero: the range of a group, widened to hold 0, takes all codes."""
    lowest, highest = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    scales = _divide(highest - lowest, 2**bits - 1).clamp_(min=_LEAST_SCALE).to(dtype)
    return scales, (-lowest / scales.float()).round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def _divide(values: Tensor, divisor: int) -> Tensor:
    """The same quotients on every device: by a number, CUDA multiplies with its reciprocal."""
    return values / values.new_tensor(divisor)
