"""A million mutated frames: each is read within its size or refused, whole and in pieces alike."""

import contextlib
import random
import sys
import time

import msgspec
import pytest
import torch

from distllm.engine.pipeline.wire.frame import Frame, decode_frame
from distllm.engine.pipeline.wire.malformed_frame import MalformedFrame
from distllm.engine.pipeline.wire.stream_decoder import StreamDecoder
from tests.engine.pipeline.wire.frames import MAX_BYTES, StepHeader, content, encoded, resealed

NUM_INPUTS = 1_000_000
NUM_CHOPPED = 50_000
HEADERS = msgspec.msgpack.Decoder(StepHeader)
FRAMES = [
    encoded((1, StepHeader(1, "beat"), [])),
    encoded((2, StepHeader(2**40, "step", (0.5, 1.5)), [torch.arange(9), torch.ones(2, 3, dtype=torch.bfloat16)])),
    encoded((3, StepHeader(3, ""), [torch.empty(0, 4), torch.zeros(40, dtype=torch.float8_e4m3fn)])),
]


@pytest.mark.soak
def test_a_million_mutated_frames_are_read_or_refused() -> None:
    seed = random.randrange(2**32)
    sys.stderr.write(f"seed {seed}\n")
    chance = random.Random(seed)
    num_read = 0
    begun = time.monotonic()
    for number in range(NUM_INPUTS):
        mutated = _mutate(chance)
        frame = _decode(mutated)
        num_read += frame is not None
        if number < NUM_CHOPPED:
            assert _describe(frame) == _describe(_decode_chopped(mutated, chance))
    sys.stderr.write(f"{num_read} of {NUM_INPUTS} read, in {time.monotonic() - begun:.0f} s\n")
    assert 0 < num_read < NUM_INPUTS / 2  # mutations reach what lies behind the checksums, and most do harm


def _mutate(chance: random.Random) -> bytearray:
    frame = bytearray(chance.choice(FRAMES))
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(frame)) if chance.random() < 0.5 else chance.randrange(8, 80) % len(frame)
        match chance.randrange(5):
            case 0:
                frame[place] ^= 1 << chance.randrange(8)
            case 1:
                frame[place] = chance.choice(b"\x00\x01\x7f\x80\x90\x9f\xc0\xc1\xc4\xc6\xcf\xd9\xdb\xdd\xdf\xff")
            case 2:
                del frame[place : place + chance.randrange(1, 9)]
            case 3:
                frame[place:place] = chance.randbytes(chance.randrange(1, 9))
            case _:
                source = chance.randrange(len(frame))
                frame[place : place + 8] = frame[source : source + 8]
        if len(frame) < 12:
            return frame
    return resealed(frame) if chance.random() < 0.7 else frame


def _decode(frame: bytearray) -> Frame | None:
    try:
        decoded = decode_frame(frame, MAX_BYTES)
    except MalformedFrame:
        return None
    with contextlib.suppress(MalformedFrame):
        decoded.header(HEADERS)
    assert sum(it.numel() * it.element_size() for it in decoded.tensors) <= len(frame)
    return decoded


def _decode_chopped(frame: bytearray, chance: random.Random) -> Frame | None:
    decoder = StreamDecoder(MAX_BYTES)
    found: list[Frame] = []
    try:
        while frame:
            length = chance.randrange(1, 70)
            found += decoder.feed(frame[:length])
            frame = frame[length:]
        decoder.finish()
    except MalformedFrame:
        return None
    assert len(found) == 1
    return found[0]


def _describe(frame: Frame | None) -> object:
    return None if frame is None else content(frame)
