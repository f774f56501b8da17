"""Frames come out of a stream as they went in, wherever it is cut; a damaged one ends it."""

import contextlib
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.engine.pipeline.wire.frame import Frame, decode_frame
from distllm.engine.pipeline.wire.malformed_frame import (
    ChecksumDiffers,
    MalformedFrame,
    OversizedFrame,
    TruncatedFrame,
)
from distllm.engine.pipeline.wire.stream_decoder import StreamDecoder
from tests.engine.pipeline.wire.frames import MAX_BYTES, StepHeader, Whole, announced, content, encoded, wholes

SMALL = (3, StepHeader(5, "trace"), [torch.arange(6, dtype=torch.bfloat16).view(2, 3), torch.tensor([-1, 7])])


@given(st.lists(wholes(), max_size=4), st.data())
def test_a_chopped_stream_gives_the_frames_that_each_decode_to(sent: list[Whole], data: st.DataObject) -> None:
    frames = [encoded(whole) for whole in sent]
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = StreamDecoder(MAX_BYTES)
    found: list[Frame] = []
    for start, end in pairwise([0, *cuts, len(stream)]):
        found += decoder.feed(stream[start:end])
    decoder.finish()
    assert [content(frame) for frame in found] == [content(decode_frame(frame, MAX_BYTES)) for frame in frames]


def test_a_stream_may_come_byte_by_byte() -> None:
    stream = encoded(SMALL) + encoded((4, StepHeader(6, ""), []))
    decoder = StreamDecoder(MAX_BYTES)
    found = [frame.kind for place in range(len(stream)) for frame in decoder.feed(stream[place : place + 1])]
    assert found == [3, 4]


def test_a_frame_keeps_its_bits_when_the_pieces_are_reused() -> None:
    piece = encoded(SMALL)
    decoder = StreamDecoder(MAX_BYTES)
    (frame,) = decoder.feed(piece)
    before = content(frame)
    piece[:] = bytes(len(piece))
    assert content(frame) == before
    assert all(tensor.data_ptr() % 64 == 0 for tensor in frame.tensors)


@settings(max_examples=30)
@given(wholes(), st.integers(1, 64))
def test_a_stream_that_ends_within_a_frame_says_so(whole: Whole, piece_bytes: int) -> None:
    frame = encoded(whole)
    decoder = StreamDecoder(MAX_BYTES)
    decoder.finish()
    for start in range(0, len(frame) - 1, piece_bytes):
        assert not list(decoder.feed(frame[start : min(start + piece_bytes, len(frame) - 1)]))
        with pytest.raises(TruncatedFrame):
            decoder.finish()


@given(st.data())
def test_damage_ends_the_stream_after_the_frames_before_it(data: st.DataObject) -> None:
    whole, damaged = encoded(SMALL), encoded(SMALL)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decoder = StreamDecoder(MAX_BYTES)
    found: list[Frame] = []
    with pytest.raises(MalformedFrame) as raised:
        _feed(decoder, whole + damaged + bytes(MAX_BYTES), found)  # a length that was damaged is waited for
    assert [content(frame) for frame in found] == [content(decode_frame(whole, MAX_BYTES))]
    with pytest.raises(type(raised.value)):
        list(decoder.feed(whole))
    with pytest.raises(type(raised.value)):
        decoder.finish()


def test_a_damaged_size_is_refused_before_what_it_speaks_of_has_come() -> None:
    head = encoded((1, StepHeader(0, ""), [torch.zeros(5000)]))[:128]
    head[head.index(b"\xcd\x13\x88") + 1] ^= 0x40
    with pytest.raises(ChecksumDiffers, match="header"):
        list(StreamDecoder(MAX_BYTES).feed(head))


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_noise_is_refused_or_waited_for(pieces: list[bytes]) -> None:
    decoder = StreamDecoder(MAX_BYTES)
    try:
        assert not [frame for piece in pieces for frame in decoder.feed(piece)]
    except MalformedFrame:
        return
    assert sum(map(len, pieces)) < 12 or pieces[0][:2] == b"dL"


def test_no_more_memory_is_taken_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    empty = torch.empty

    def take(num_bytes: int, dtype: torch.dtype) -> torch.Tensor:
        taken.append(num_bytes)
        return empty(num_bytes, dtype=dtype)

    monkeypatch.setattr(torch, "empty", take)
    for size in (MAX_BYTES - 64, MAX_BYTES, MAX_BYTES * 1000):
        decoder = StreamDecoder(MAX_BYTES)
        with contextlib.suppress(OversizedFrame):
            _feed(decoder, announced([["uint8", [size]]]), [])
    assert max(taken) == MAX_BYTES


def test_a_header_without_end_is_refused() -> None:
    head = encoded(SMALL)[:12]
    head[4:8] = MAX_BYTES.to_bytes(4, "little")
    with pytest.raises(OversizedFrame):
        _feed(StreamDecoder(MAX_BYTES), head, [])
    head[4:8] = (MAX_BYTES - 12).to_bytes(4, "little")
    with pytest.raises(ChecksumDiffers):
        _feed(StreamDecoder(MAX_BYTES), head + bytes(MAX_BYTES), [])


def _feed(decoder: StreamDecoder, piece: bytes | bytearray, found: list[Frame]) -> None:
    """Also those before a failure are found."""
    found.extend(decoder.feed(piece))
