"""Stored tensors without their contents, in the place of slices of a file: what loading them would meet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distllm.engine.checkpoint import StoredTensor

_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}


def empty_like(stored: StoredTensor) -> Tensor:
    """A tensor of its shape and type on the meta device."""
    return torch.empty(stored.shape, dtype=_DTYPES[stored.dtype], device="meta")


@dataclass(frozen=True, slots=True)
class ContentlessSlice:
    """Stands in for what safetensors' `get_slice` returns."""

    stored: StoredTensor

    def get_shape(self) -> list[int]:
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        return self.stored.dtype

    def __getitem__(self, index: Any) -> Tensor:
        return empty_like(self.stored)[index]
