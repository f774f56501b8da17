"""Puts a model's weights into shared memory in the form of a safetensors file, which other processes can map.

    header length (8 bytes, little endian) | header (JSON, padded to 64 bytes) | tensors, widest types first

The memory has no name in any file system: it goes with the last process that holds it.
"""

import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from distllm.engine.distributed.shared_bytes import create_descriptor

_ALIGNMENT = 64
_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls torch's types."""


class CannotShare(ValueError):
    """A tensor cannot be put into shared memory; the message names it and says why."""


class SharedWeights:
    """Tensors by name in one piece of shared memory. Close it when nobody will open `path` any more."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Moves `tensors` one at a time: each refers to the shared memory afterwards, and its old memory is free.

        Raises CannotShare before anything has moved.
        """
        for name, tensor in tensors.items():
            _check(name, tensor)
        header, offsets = _lay_out(tensors)
        self.num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        self._descriptor: int | None = create_descriptor()
        os.ftruncate(self._descriptor, len(header) + self.num_bytes)
        memory = mmap.mmap(self._descriptor, len(header) + self.num_bytes)
        memory[: len(header)] = header
        for name, tensor in tensors.items():
            _move(tensor, memory, len(header) + offsets[name])

    @property
    def path(self) -> Path:
        """Under which other processes of this user open the memory, as a safetensors file."""
        assert self._descriptor is not None, "the shared weights have been closed"
        return Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")

    def close(self) -> None:
        """Let go of the memory; what has it mapped keeps it. Does nothing the second time."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _check(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise CannotShare(f"{name} is on the meta device (offloaded, or never loaded): give the checkpoint's path")
    if type(tensor.data) is not Tensor or tensor.layout != torch.strided or tensor.dtype not in _NAMES:
        kind = f"a {type(tensor.data).__name__} of {str(tensor.dtype).removeprefix('torch.')}"
        raise CannotShare(f"{name} is {kind}, not a plain tensor: give the checkpoint's path")


def _lay_out(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """The file's beginning, and where after it each tensor lies."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
        tensor = tensors[name]
        offsets[name] = end
        end += tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, offsets


@torch.no_grad()
def _move(tensor: Tensor, memory: mmap.mmap, offset: int) -> None:
    if tensor.numel() == 0:
        return
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    shared = flat.view(tensor.shape)
    shared.copy_(tensor)
    tensor.data = shared
