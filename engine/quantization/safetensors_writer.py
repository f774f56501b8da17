"""Writes a safetensors file tensor by tensor: the header first, so that no more than one tensor is in memory.

The format: header length (8 bytes, little endian) | header (JSON) | tensor bytes, without gaps.
"""

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that will be written: its type by the header's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @classmethod
    def of(cls, name: str, dtype: torch.dtype, *shape: int) -> "PlannedTensor":
        return cls(name, _NAMES[dtype], shape, torch.Size(shape).numel() * dtype.itemsize)


def write_safetensors(path: Path, planned: Sequence[PlannedTensor], tensors: Iterable[Tensor]) -> None:
    """Write `tensors`, which come in the order of `planned` and are taken one at a time."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for plan in planned:
        end = begin + plan.num_bytes
        entries[plan.name] = {"dtype": plan.dtype, "shape": plan.shape, "data_offsets": (begin, end)}
        begin = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for plan, tensor in zip(planned, tensors, strict=True):
            assert (tuple(tensor.shape), tensor.nbytes) == (plan.shape, plan.num_bytes), plan.name
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
