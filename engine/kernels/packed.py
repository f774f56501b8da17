"""What a packed weight is: panels in the order in which the kernels read them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Bf16Variant = Literal["fma", "dot"]
"""How bf16 weights are multiplied: widened to float32 and fused, or by bf16 dot-product instructions."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A weight [out_features, in_features] in panels of sixteen output features, padded with zeros.

    `variant` fixes the order and the rounding of its sums for every number of rows, so it belongs to the weight.
    float32 weights are always "fma".
    """

    panels: Tensor  # flat, of `dtype`
    out_features: int
    in_features: int
    dtype: torch.dtype
    variant: Bf16Variant

    @property
    def device(self) -> torch.device:
        return self.panels.device

    @property
    def num_bytes(self) -> int:
        return self.panels.numel() * self.panels.element_size()
