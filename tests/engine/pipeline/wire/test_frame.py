"""A frame comes back bit by bit; what is none, or damaged, is refused by name before memory is taken for it."""

import tracemalloc
import warnings

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.engine.pipeline.wire.frame import decode_frame, encode_frame
from distllm.engine.pipeline.wire.layout import MAX_ENVELOPE_BYTES, MAX_TENSORS, PROTOCOL_VERSION
from distllm.engine.pipeline.wire.malformed_frame import (
    ChecksumDiffers,
    MalformedFrame,
    MalformedHeader,
    OtherVersion,
    OversizedFrame,
    TrailingBytes,
    TruncatedFrame,
    WrongMagic,
)
from tests.engine.pipeline.wire.frames import (
    MAX_BYTES,
    StepHeader,
    Whole,
    announced,
    bits,
    encoded,
    resealed,
    sealed,
    wholes,
)

SMALL = (3, StepHeader(5, "trace"), [torch.arange(6, dtype=torch.bfloat16).view(2, 3), torch.tensor([-1, 7])])


@given(wholes())
def test_a_frame_comes_back_with_its_bits(whole: Whole) -> None:
    kind, header, tensors = whole
    for buffer in (encoded(whole), bytes(encoded(whole)), memoryview(encoded(whole))):
        frame = decode_frame(buffer, MAX_BYTES)
        assert frame.kind == kind
        assert msgspec.msgpack.encode(frame.header(msgspec.msgpack.Decoder(StepHeader))) == frame.header_bytes
        assert frame.header_bytes == msgspec.msgpack.encode(header)
        assert [bits(it) for it in frame.tensors] == [bits(it) for it in tensors]


def test_tensors_are_sent_and_received_without_a_copy_and_aligned() -> None:
    rows = torch.arange(300, dtype=torch.float32).view(3, 100)
    buffers = encode_frame(1, StepHeader(0, ""), [torch.ones(3, dtype=torch.uint8), rows])
    assert np.frombuffer(buffers[-1], np.uint8).ctypes.data == rows.data_ptr()
    received = bytearray(b"".join(buffers))
    _, found = decode_frame(received, MAX_BYTES).tensors
    begin = np.frombuffer(received, np.uint8).ctypes.data
    assert found.data_ptr() == begin + len(received) - 1200
    assert (found.data_ptr() - begin) % 64 == 0


def test_tensors_that_are_strided_or_need_gradients_are_sent_too() -> None:
    given_tensors = [torch.arange(12.0).view(3, 4).T, torch.ones(2, requires_grad=True)]
    found = decode_frame(encoded((1, StepHeader(0, ""), given_tensors)), MAX_BYTES).tensors
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(given_tensors, found, strict=True))


def test_bytes_that_are_not_to_be_written_to_are_read_without_a_warning() -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        decode_frame(bytes(encoded(SMALL)), MAX_BYTES)
    assert not warned


def test_every_flipped_bit_is_found() -> None:
    frame = encoded(SMALL)
    for place in range(8 * len(frame)):
        frame[place // 8] ^= 1 << place % 8
        with pytest.raises(MalformedFrame):
            decode_frame(frame, MAX_BYTES)
        frame[place // 8] ^= 1 << place % 8
    decode_frame(frame, MAX_BYTES)


@settings(max_examples=30)
@given(wholes())
def test_a_frame_cut_anywhere_is_refused(whole: Whole) -> None:
    frame = encoded(whole)
    for end in range(len(frame)):
        with pytest.raises(TruncatedFrame):
            decode_frame(frame[:end], MAX_BYTES)


def test_refusals_say_why() -> None:
    frame = encoded(SMALL)
    with pytest.raises(WrongMagic, match="4745"):
        decode_frame(b"GET / HTTP/1.1\r\n", MAX_BYTES)
    with pytest.raises(OtherVersion, match=f"version 9 .* where {PROTOCOL_VERSION} "):
        decode_frame(frame[:2] + b"\x09" + frame[3:], MAX_BYTES)
    with pytest.raises(OversizedFrame, match=f"{len(frame) - 1} are accepted; raise network.max_message_size_mb"):
        decode_frame(frame, len(frame) - 1)
    with pytest.raises(TruncatedFrame, match=f"ended after {len(frame) - 1} bytes of at least {len(frame)}"):
        decode_frame(frame[:-1], MAX_BYTES)
    with pytest.raises(TrailingBytes, match="1 bytes after"):
        decode_frame(frame + b"\0", MAX_BYTES)
    with pytest.raises(ChecksumDiffers, match="payload"):
        decode_frame(frame[:-1] + b"\x55", MAX_BYTES)
    with pytest.raises(ChecksumDiffers, match="header"):
        decode_frame(frame[:20] + b"\x55" + frame[21:], MAX_BYTES)


@pytest.mark.parametrize(
    "spec",
    [
        ["float32", [2**62, 2**62]],
        ["float32", [2**62, 2**62, 0]],  # no elements, but strides that no integer holds
        ["uint8", [MAX_BYTES + 1]],
        ["uint8", [MAX_BYTES]],
    ],
)
def test_a_tensor_over_the_limit_is_refused_for_its_size(spec: object) -> None:
    with pytest.raises(OversizedFrame, match="max_message_size_mb"):
        decode_frame(announced([spec]), MAX_BYTES)


@pytest.mark.parametrize(
    "spec",
    [
        ["complex64", [1]],
        ["object", [1]],
        [7, [1]],
        ["uint8", [-1]],
        ["uint8", [1.0]],
        ["uint8", [1] * 9],
        ["uint8"],
        None,
    ],
)
def test_a_tensor_that_is_none_is_refused(spec: object) -> None:
    with pytest.raises(MalformedHeader):
        decode_frame(announced([spec], bytes(8)), MAX_BYTES)


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x93\x00\x90\x01\x00",  # more follows
        b"\x93\xce\xff\xff\xff\xff\x90",  # no header
        b"\x93\xff\x90\x01",  # a checksum below 0
        b"\x93\x00\x90" + b"\x91" * 100_000 + b"\x00",  # deeper than any stack
        b"\x93\x00\x91\x92\xa2\xff\xff\x90\x00",  # a name that is no UTF-8
        b"\x93\x00\xdd\xff\xff\xff\xff",  # four thousand million tensors
        b"\x93\x00\xdc"
        + (MAX_TENSORS + 1).to_bytes(2, "big")
        + b"\x92\xa5uint8\x91\x00" * (MAX_TENSORS + 1)
        + b"\x00",
    ],
)
def test_an_envelope_that_is_none_is_refused(envelope: bytes) -> None:
    with pytest.raises(MalformedHeader):
        decode_frame(sealed(envelope), MAX_BYTES)


def test_an_envelope_is_limited_though_longer_frames_are_accepted() -> None:
    head = bytearray(encoded(SMALL)[:64])
    head[4:8] = (MAX_ENVELOPE_BYTES + 1).to_bytes(4, "little")
    with pytest.raises(MalformedHeader, match=str(MAX_ENVELOPE_BYTES)):
        decode_frame(head, 1 << 30)


@pytest.mark.parametrize("header", [None, 5, {"epoch": -1}, {"epoch": "1", "trace_id": ""}, [[[[]]]]])
def test_a_header_of_another_type_is_refused(header: object) -> None:
    frame = decode_frame(announced([], header=header), MAX_BYTES)
    with pytest.raises(MalformedHeader):
        frame.header(msgspec.msgpack.Decoder(StepHeader))


@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_are_refused(noise: bytes, has_our_prefix: bool) -> None:
    with pytest.raises(MalformedFrame):
        decode_frame(b"dL\x01" + noise if has_our_prefix else noise, MAX_BYTES)


@given(wholes(), st.data())
def test_damage_under_a_right_checksum_is_read_or_refused(whole: Whole, data: st.DataObject) -> None:
    frame = encoded(whole)
    end = min(len(frame), 256)
    for place in data.draw(st.lists(st.integers(8, end - 1), min_size=1, max_size=4)):
        frame[place] = data.draw(st.integers(0, 255))
    try:
        tensors = decode_frame(resealed(frame), MAX_BYTES).tensors
    except MalformedFrame:
        return
    assert sum(it.numel() * it.element_size() for it in tensors) <= len(frame)


def test_what_a_frame_claims_takes_no_memory() -> None:
    claims = [announced([["uint8", [1 << 29]]]), announced([["float64", [1 << 26]]] * (MAX_TENSORS + 1))]
    tracemalloc.start()
    for claim in claims:
        with pytest.raises(MalformedFrame):
            decode_frame(claim, 1 << 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 16
