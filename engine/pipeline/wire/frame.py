"""A frame: a kind, a header and tensors as bytes that are checked before they are believed; never pickled.

Knows nothing of what kinds and headers mean. Elements are little-endian, as every supported machine has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from distllm.engine.pipeline.wire.crc32c import crc32c
from distllm.engine.pipeline.wire.layout import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_TENSORS,
    Layout,
    decode_msgpack,
    pack_head,
    padding,
    parse_envelope,
    parse_prefix,
)
from distllm.engine.pipeline.wire.malformed_frame import (
    ChecksumDiffers,
    OversizedFrame,
    TrailingBytes,
    TruncatedFrame,
)

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Header = TypeVar("Header")


@dataclass(frozen=True, slots=True)
class Frame:
    """What was received. `tensors` are views of the received buffer, and as little to be written to as it is."""

    kind: int
    header_bytes: bytes
    tensors: tuple[Tensor, ...]

    def header(self, decoder: msgspec.msgpack.Decoder[Header]) -> Header:
        """Raises MalformedHeader where the header is not of the decoder's type."""
        return decode_msgpack(decoder, self.header_bytes)


def encode_frame(kind: int, header: msgspec.Struct, tensors: Sequence[Tensor] = ()) -> list[bytes | memoryview]:
    """Buffers to send one after the other; those of contiguous tensors in host memory are views of them.

    `kind` is below 256. Tensors are on any device, of types in `layout.DTYPES`, and must not change before they are
    sent: that would be found as damage.
    """
    assert len(tensors) <= MAX_TENSORS, f"{len(tensors)} tensors in a frame"
    assert all(tensor.dim() <= MAX_DIMENSIONS for tensor in tensors), "too many dimensions"
    payload = _encode_payload(tensors)
    specs = [(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for tensor in tensors]
    envelope = msgspec.msgpack.encode((crc32c(payload), specs, header))
    return [pack_head(kind, envelope), *payload]


def decode_frame(buffer: bytes | bytearray | memoryview, max_bytes: int) -> Frame:
    """The one frame that `buffer` is. Raises MalformedFrame; allocates nothing in proportion to what it says."""
    whole = memoryview(buffer)
    if len(whole) > max_bytes:
        raise OversizedFrame(len(whole), max_bytes)
    layout = parse_envelope(parse_prefix(whole, max_bytes), whole, max_bytes)
    if len(whole) < layout.frame_bytes:
        raise TruncatedFrame(len(whole), layout.frame_bytes)
    if len(whole) > layout.frame_bytes:
        raise TrailingBytes(len(whole) - layout.frame_bytes)
    return open_frame(layout, whole)


def open_frame(layout: Layout, whole: memoryview) -> Frame:
    """The frame that the `layout.frame_bytes` bytes of `whole` are. Raises ChecksumDiffers for its payload."""
    payload = whole[layout.payload_start :]
    found = crc32c((payload,))
    if found != layout.payload_checksum:
        raise ChecksumDiffers("payload of a frame", found, layout.payload_checksum)
    # Through DLPack, for torch.frombuffer warns of memory that is not to be written to, such as that of bytes.
    elements = from_dlpack(np.frombuffer(payload, np.uint8)) if layout.tensors else torch.empty(0)
    tensors = [elements[it.start : it.end].view(it.dtype).view(it.shape) for it in layout.tensors]
    return Frame(layout.kind, layout.header_bytes, tuple(tensors))


def _encode_payload(tensors: Sequence[Tensor]) -> list[bytes | memoryview]:
    payload: list[bytes | memoryview] = []
    num_bytes = 0
    for tensor in tensors:
        if gap := padding(num_bytes):
            payload.append(bytes(gap))
        elements = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        payload.append(elements)
        num_bytes += gap + len(elements)
    return payload
