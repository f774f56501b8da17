"""Where in a frame what lies, read in the order in which it arrives; nothing is believed before its checksum.

    0       2         3      4                 8          12
    | magic | version | kind | envelope_length | checksum | envelope | zeros | payload
                                                                             ^ a multiple of 64

`checksum` is of all before the payload but itself. The envelope is msgpack: the payload's checksum, type and shape
of each tensor in it, and the header. Tensors follow each other, each from a multiple of 64 on, so none can overlap
another. Whatever the version, the first three bytes stay as they are.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
import torch
from msgspec import Meta

from distllm.engine.pipeline.wire.crc32c import crc32c
from distllm.engine.pipeline.wire.malformed_frame import (
    ChecksumDiffers,
    MalformedHeader,
    OtherVersion,
    OversizedFrame,
    TruncatedFrame,
    WrongMagic,
)

PROTOCOL_VERSION = 1
PREFIX_BYTES = 12
MAX_ENVELOPE_BYTES = 4 << 20
MAX_TENSORS = 256
MAX_DIMENSIONS = 8

DtypeName = Literal["bfloat16", "float16", "float32", "float64", "int64", "int32", "uint8", "int8", "float8_e4m3fn"]
DTYPES: dict[DtypeName, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "float8_e4m3fn": torch.float8_e4m3fn,
}

_MAGIC = b"dL"
_PREFIX = struct.Struct("<2sBBI")
_CHECKSUM = struct.Struct("<I")
_ALIGNMENT = 64

Decoded = TypeVar("Decoded")


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """What the elements of a tensor are."""

    dtype: DtypeName
    shape: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=MAX_DIMENSIONS)]


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """What a frame says of itself, around the header that its sender gave."""

    payload_checksum: Annotated[int, Meta(ge=0, lt=1 << 32)]
    tensors: Annotated[tuple[TensorSpec, ...], Meta(max_length=MAX_TENSORS)]
    header: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first 12 bytes. The envelope lies at [12, envelope_end), the payload from `payload_start` on."""

    kind: int
    envelope_end: int
    payload_start: int
    checksum: int


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """Where the elements of a tensor lie: at [start, end) of the payload."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """All that precedes the payload, checked."""

    kind: int
    header_bytes: bytes
    tensors: tuple[TensorSpan, ...]
    payload_checksum: int
    payload_start: int
    frame_bytes: int


_ENVELOPE_DECODER = msgspec.msgpack.Decoder(Envelope)


def padding(length: int) -> int:
    """How many bytes follow the first `length` before the next tensor."""
    return -length % _ALIGNMENT


def pack_head(kind: int, envelope: bytes) -> bytes:
    """All that precedes the payload. `kind` is below 256."""
    assert len(envelope) <= MAX_ENVELOPE_BYTES, f"an envelope of {len(envelope)} bytes"
    prefix = _PREFIX.pack(_MAGIC, PROTOCOL_VERSION, kind, len(envelope))
    padded = envelope + bytes(padding(PREFIX_BYTES + len(envelope)))
    return b"".join((prefix, _CHECKSUM.pack(crc32c((prefix, padded))), padded))


def parse_prefix(frame: memoryview, max_bytes: int) -> Prefix:
    """Of a frame's first bytes. Raises MalformedFrame, also where the envelope alone exceeds `max_bytes`."""
    if len(frame) < PREFIX_BYTES:
        raise TruncatedFrame(len(frame), PREFIX_BYTES)
    magic, version, kind, envelope_length = _PREFIX.unpack_from(frame)
    if magic != _MAGIC:
        raise WrongMagic(magic)
    if version != PROTOCOL_VERSION:
        raise OtherVersion(version, PROTOCOL_VERSION)
    envelope_end = PREFIX_BYTES + envelope_length
    payload_start = envelope_end + padding(envelope_end)
    if payload_start > max_bytes:
        raise OversizedFrame(payload_start, max_bytes)
    if envelope_length > MAX_ENVELOPE_BYTES:
        raise MalformedHeader(f"a header of {envelope_length} bytes where {MAX_ENVELOPE_BYTES} are accepted")
    return Prefix(kind, envelope_end, payload_start, *_CHECKSUM.unpack_from(frame, _PREFIX.size))


def parse_envelope(prefix: Prefix, frame: memoryview, max_bytes: int) -> Layout:
    """Of a frame's bytes up to its payload at least. Raises MalformedFrame, also of a frame over `max_bytes`."""
    if len(frame) < prefix.payload_start:
        raise TruncatedFrame(len(frame), prefix.payload_start)
    found = crc32c((frame[: _PREFIX.size], frame[PREFIX_BYTES : prefix.payload_start]))
    if found != prefix.checksum:
        raise ChecksumDiffers("header of a frame", found, prefix.checksum)
    envelope = decode_msgpack(_ENVELOPE_DECODER, frame[PREFIX_BYTES : prefix.envelope_end])
    tensors = _place(envelope.tensors, max_bytes)
    frame_bytes = prefix.payload_start + (tensors[-1].end if tensors else 0)
    if frame_bytes > max_bytes:
        raise OversizedFrame(frame_bytes, max_bytes)
    return Layout(
        kind=prefix.kind,
        header_bytes=bytes(envelope.header),
        tensors=tensors,
        payload_checksum=envelope.payload_checksum,
        payload_start=prefix.payload_start,
        frame_bytes=frame_bytes,
    )


def decode_msgpack(decoder: msgspec.msgpack.Decoder[Decoded], encoded: bytes | memoryview) -> Decoded:
    """Raises MalformedHeader, whatever the bytes are."""
    try:
        return decoder.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedHeader(f"a header cannot be read: {error}") from None


def _place(specs: Sequence[TensorSpec], max_bytes: int) -> tuple[TensorSpan, ...]:
    spans: list[TensorSpan] = []
    end = 0
    for spec in specs:
        dtype = DTYPES[spec.dtype]
        # Also without elements a tensor has strides, which are products of its other sizes.
        extent = math.prod(max(size, 1) for size in spec.shape) * dtype.itemsize
        if extent > max_bytes:
            raise OversizedFrame(extent, max_bytes)
        start = end + padding(end)
        end = start + math.prod(spec.shape) * dtype.itemsize
        spans.append(TensorSpan(dtype, spec.shape, start, end))
    return tuple(spans)
