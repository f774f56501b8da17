"""Writes a safetensors file tensor by tensor: the header first, so that no more than one tensor is in memory.

The format: header length (8 bytes, little endian) | header (JSON) | tensor bytes, without gaps.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

DTYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a safetensors header calls a type."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that will be written: its type by the header's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @classmethod
    def of(cls, name: str, dtype: torch.dtype, *shape: int) -> "PlannedTensor":
        return cls(name, DTYPE_NAMES[dtype], shape, torch.Size(shape).numel() * dtype.itemsize)


class SafetensorsFile:
    """A file that takes its tensors in the order of `planned`. Knows the SHA-256 of what it has written."""

    def __init__(self, path: Path, planned: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> None:
        self._planned = iter(planned)
        self._digest = hashlib.sha256()
        self._file = path.open("wb")
        self._write(encode_header(planned, metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._named():
            self._file.close()

    def append(self, tensor: Tensor) -> int:
        """Write the next of the planned tensors. Returns its bytes."""
        plan = next(self._planned)
        assert (tuple(tensor.shape), tensor.nbytes) == (plan.shape, plan.num_bytes), plan.name
        self._write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return plan.num_bytes

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _write(self, data: bytes | memoryview) -> None:
        with self._named():
            self._file.write(data)
        self._digest.update(data)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """An error of writing names no file by itself."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None


def write_safetensors(path: Path, planned: Sequence[PlannedTensor], tensors: Iterable[Tensor]) -> None:
    """Write `tensors`, which come in the order of `planned` and are taken one at a time."""
    with SafetensorsFile(path, planned, {"format": "pt"}) as file:
        for _, tensor in zip(planned, tensors, strict=True):
            file.append(tensor)


def encode_header(planned: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """A file's beginning: the length of its header, and the header, filled up to a multiple of eight bytes."""
    entries: dict[str, object] = {"__metadata__": metadata}
    begin = 0
    for plan in planned:
        end = begin + plan.num_bytes
        entries[plan.name] = {"dtype": plan.dtype, "shape": plan.shape, "data_offsets": (begin, end)}
        begin = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header
