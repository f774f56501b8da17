"""What a quantized weight is, before any kernel packs it: codes, scales and zero points as plain tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

CodeFormat = Literal["int8", "int4", "fp8"]
"""Whole numbers in a byte or half of one, or float8 e4m3."""

MIDDLE = {"int8": 128, "int4": 8, "fp8": 0}
"""The code of zero where there are no zero points."""

GROUP_MULTIPLE = 8
"""Inputs of which a group has a multiple, where there are several: the kernels read so many at once."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A weight [out_features, in_features]: scale * (code - zero), or scale * e4m3(code).

    A group is in_features / num_groups inputs. `input_order` [in_features] (int64), where there is one, says which
    input each column of the codes belongs to: GPTQ sorts inputs so that those of a group lie side by side.
    `is_dynamic` asks for inputs rounded to eight bits as well.
    """

    codes: Tensor  # uint8 [out_features, in_features], or [out_features, in_features / 2], low half first
    scales: Tensor  # float32 or bfloat16 [out_features, num_groups]
    zeros: Tensor | None  # uint8 [out_features, num_groups]
    format: CodeFormat
    dtype: torch.dtype  # of the weight that it stands for
    input_order: Tensor | None = None
    is_dynamic: bool = False

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        return self.codes.shape[1] * (2 if self.format == "int4" else 1)

    @property
    def num_groups(self) -> int:
        return self.scales.shape[1]

    @property
    def num_bytes(self) -> int:
        parts = (self.codes, self.scales, self.zeros, self.input_order)
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, start: int, stop: int) -> "QuantizedTensor":
        """Output features start .. stop, as views."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return replace(self, codes=self.codes[start:stop], scales=self.scales[start:stop], zeros=zeros)

    def take_rows(self, spans: Sequence[tuple[int, int]]) -> "QuantizedTensor":
        """Output features of several spans [start, stop), one after the other."""
        return concatenate([self.rows(start, stop) for start, stop in spans], are_of_one=True)

    def take_columns(self, spans: Sequence[tuple[int, int]]) -> "QuantizedTensor":
        """Inputs of several spans [start, stop). A group that they cut becomes smaller ones, of the same scale.

        Raises ValueError where a piece would be of no multiple of GROUP_MULTIPLE inputs, or inputs are sorted.
        """
        if self.input_order is not None:
            raise ValueError("its inputs are sorted by their groups (desc_act), so that they cannot be divided")
        if self.num_groups > 1:
            return self._in_groups_within(spans)._take_groups(spans)
        if any(bound % 2 for span in spans for bound in span):
            raise ValueError("an odd number of its inputs would be taken")
        return self._take_groups(spans)

    def _in_groups_within(self, spans: Sequence[tuple[int, int]]) -> "QuantizedTensor":
        """The same weight in the largest groups that no span cuts."""
        whole = self.in_features // self.num_groups
        group = math.gcd(whole, *(bound for span in spans for bound in span))
        if group == whole:
            return self
        if group % GROUP_MULTIPLE:
            raise ValueError(f"groups of {whole} inputs would be cut into pieces of {group}")
        scales = self.scales.repeat_interleave(whole // group, dim=1)
        zeros = None if self.zeros is None else self.zeros.repeat_interleave(whole // group, dim=1)
        return replace(self, scales=scales, zeros=zeros)

    def _take_groups(self, spans: Sequence[tuple[int, int]]) -> "QuantizedTensor":
        """Inputs of spans that cut no group."""
        per_byte = 2 if self.format == "int4" else 1
        codes = [self.codes[:, start // per_byte : stop // per_byte] for start, stop in spans]
        if self.num_groups == 1:
            return replace(self, codes=torch.cat(codes, dim=1))
        group = self.in_features // self.num_groups
        bounds = [slice(start // group, stop // group) for start, stop in spans]
        zeros = None if self.zeros is None else torch.cat([self.zeros[:, part] for part in bounds], dim=1)
        scales = torch.cat([self.scales[:, part] for part in bounds], dim=1)
        return replace(self, codes=torch.cat(codes, dim=1), scales=scales, zeros=zeros)

    def to(self, device: torch.device) -> "QuantizedTensor":
        return replace(
            self,
            codes=self.codes.to(device),
            scales=self.scales.to(device),
            zeros=None if self.zeros is None else self.zeros.to(device),
            input_order=None if self.input_order is None else self.input_order.to(device),
        )

    def whole_numbers(self) -> Tensor:
        """code - zero, or e4m3(code): float32 [out_features, num_groups, in_features / num_groups]."""
        if self.format == "fp8":
            values = self.codes.view(torch.float8_e4m3fn).float()
            return values.view(self.out_features, self.num_groups, -1)
        values = unpack_halves(self.codes) if self.format == "int4" else self.codes
        grouped = values.view(self.out_features, self.num_groups, -1).float()
        return grouped - (MIDDLE[self.format] if self.zeros is None else self.zeros.float().unsqueeze(-1))

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [out_features, in_features] in `dtype`, or its own."""
        weight = (self.whole_numbers() * self.scales.float().unsqueeze(-1)).flatten(1)
        if self.input_order is not None:
            weight = weight[:, self.input_order.argsort()]
        return weight.to(self.dtype if dtype is None else dtype)

    def goes_with(self, other: "QuantizedTensor") -> bool:
        """Whether both may be rows of one tensor."""
        return (
            (self.format, self.dtype, self.is_dynamic) == (other.format, other.dtype, other.is_dynamic)
            and (self.in_features, self.num_groups) == (other.in_features, other.num_groups)
            and (self.scales.dtype, self.zeros is None) == (other.scales.dtype, other.zeros is None)
            and self.input_order is None
            and other.input_order is None
        )


def go_together(parts: Sequence[QuantizedTensor]) -> bool:
    """Whether they may be rows of one tensor."""
    return all(parts[0].goes_with(part) for part in parts[1:])


def concatenate(parts: Sequence[QuantizedTensor], *, are_of_one: bool = False) -> QuantizedTensor:
    """Their rows one after the other; all must go with the first, or be rows of one tensor."""
    first = parts[0]
    if len(parts) == 1:
        return first
    assert are_of_one or go_together(parts)
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return replace(
        first,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat(zeros) if zeros else None,
    )


def pack_halves(codes: Tensor) -> Tensor:
    """uint8 [..., 2 n] below 16 -> uint8 [..., n], the first of two in the lower half."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_halves(codes: Tensor) -> Tensor:
    """The inverse of pack_halves."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
