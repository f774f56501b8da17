"""Tensors as bytes between hosts: for each a header of type and shape, then its raw elements; never pickled.

num_tensors | dtype, num_dimensions, sizes ... | elements | dtype, ...
"""

import math
import struct
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_COUNT = struct.Struct(">B")
_HEADER = struct.Struct(">BB")
_DTYPES = (torch.int64, torch.int32, torch.float32)
_MAX_DIMENSIONS = 4


class MalformedTensors(ValueError):
    """Bytes that are no encoded tensors."""


def encode_tensors(tensors: Sequence[Tensor]) -> list[bytes | memoryview]:
    """Buffers to send one after the other. Tensors of any device, of int64, int32 or float32."""
    buffers: list[bytes | memoryview] = [_COUNT.pack(len(tensors))]
    for tensor in tensors:
        header = _HEADER.pack(_DTYPES.index(tensor.dtype), tensor.dim())
        buffers.append(header + struct.pack(f">{tensor.dim()}Q", *tensor.shape))
        if tensor.numel():
            buffers.append(tensor.detach().cpu().contiguous().numpy().data.cast("B"))
    return buffers


def decode_tensors(message: bytearray) -> list[Tensor]:
    """Tensors in host memory, of elements of their own. Raises MalformedTensors."""
    try:
        return list(_decode(memoryview(message)))
    except (struct.error, IndexError) as error:
        raise MalformedTensors(f"tensors end too early: {error}") from None


def _decode(message: memoryview) -> Iterator[Tensor]:
    (count,) = _COUNT.unpack_from(message)
    offset = _COUNT.size
    for _ in range(count):
        number, num_dimensions = _HEADER.unpack_from(message, offset)
        if num_dimensions > _MAX_DIMENSIONS:
            raise MalformedTensors(f"a tensor has {num_dimensions} dimensions")
        offset += _HEADER.size
        shape = struct.unpack_from(f">{num_dimensions}Q", message, offset)
        offset += 8 * num_dimensions
        dtype = _DTYPES[number]
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > len(message) - offset:
            raise MalformedTensors(f"a tensor of {num_bytes} bytes in a message of {len(message)}")
        yield _view(message[offset : offset + num_bytes], dtype, shape)
        offset += num_bytes
    if offset != len(message):
        raise MalformedTensors(f"{len(message) - offset} bytes after the last tensor")


def _view(elements: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A copy, for what follows a header is not aligned."""
    tensor = torch.empty(shape, dtype=dtype)
    if elements:
        tensor.numpy().data.cast("B")[:] = elements
    return tensor
