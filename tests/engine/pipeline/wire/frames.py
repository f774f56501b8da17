"""Frames of every shape for hypothesis, and frames whose checksums are right whatever they say."""

import math
import struct
from collections.abc import Sequence

import msgspec
import torch
from hypothesis import strategies as st
from torch import Tensor

from distllm.engine.pipeline.wire.crc32c import crc32c
from distllm.engine.pipeline.wire.frame import Frame, encode_frame
from distllm.engine.pipeline.wire.layout import DTYPES, pack_head

MAX_BYTES = 1 << 20


class StepHeader(msgspec.Struct, frozen=True):
    epoch: int
    trace_id: str
    deadlines_s: tuple[float, ...] = ()


Whole = tuple[int, StepHeader, list[Tensor]]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of every type, of any bits, also empty, also without dimensions."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    num_bytes = math.prod(shape) * dtype.itemsize
    elements = torch.tensor(list(draw(st.randoms(use_true_random=False)).randbytes(num_bytes)), dtype=torch.uint8)
    return elements.view(dtype).view(shape)


def wholes() -> st.SearchStrategy[Whole]:
    headers = st.builds(
        StepHeader, st.integers(0, 2**63), st.text(max_size=80), st.lists(st.floats(), max_size=20).map(tuple)
    )
    return st.tuples(st.integers(0, 255), headers, st.lists(tensors(), max_size=5))


def encoded(whole: Whole) -> bytearray:
    return bytearray(b"".join(encode_frame(*whole)))


def sealed(envelope: bytes, payload: bytes = b"") -> bytes:
    """A frame of any envelope at all, with the checksum that is due to it."""
    return pack_head(7, envelope) + payload


def announced(specs: Sequence[object], payload: bytes = b"", header: object = 0) -> bytes:
    """A frame that says of its undamaged payload whatever `specs` are."""
    return sealed(msgspec.msgpack.encode((crc32c([payload]), specs, header)), payload)


def resealed(frame: bytes | bytearray) -> bytearray:
    """A damaged frame with the checksum that its head would have."""
    (length,) = struct.unpack_from("<I", frame, 4)
    end = 12 + length + -(12 + length) % 64
    return bytearray(frame[:8] + struct.pack("<I", crc32c([frame[:8], frame[12:end]])) + frame[12:])


def content(frame: Frame) -> tuple[object, ...]:
    """What can be compared bit by bit."""
    return frame.kind, frame.header_bytes, [bits(tensor) for tensor in frame.tensors]


def bits(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
