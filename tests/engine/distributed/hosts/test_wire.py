"""Messages between hosts arrive whole; what is none closes the connection and does nothing else."""

import socket
import struct
from collections.abc import Iterator

import pytest
import torch

from distllm.engine.distributed.hosts.tensor_codec import MalformedTensors, decode_tensors, encode_tensors
from distllm.engine.distributed.hosts.wire import Kind, Wire, WireClosed

TENSORS = [
    torch.arange(6).view(2, 3),
    torch.tensor([], dtype=torch.int64).view(2, 0),
    torch.tensor([-1, 5], dtype=torch.int32),
    torch.tensor([[1.5, float("nan"), -0.0]]),
    torch.arange(12, dtype=torch.float32).view(3, 4).T,
]


@pytest.fixture
def ends() -> Iterator[tuple[Wire, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with theirs:
        wire = Wire(ours)
        yield wire, theirs
        wire.close()


Ends = tuple[Wire, socket.socket]


def test_messages_arrive_in_their_order(ends: Ends) -> None:
    wire, theirs = ends
    other = Wire(theirs)
    other.send(Kind.STEP, b"ab", b"", memoryview(b"cd"))
    other.send_beat(b"beat")
    assert wire.receive() == (Kind.STEP, bytearray(b"abcd"))
    assert wire.receive() == (Kind.BEAT, bytearray(b"beat"))


@pytest.mark.parametrize(
    "words",
    [
        struct.pack(">BI", 77, 3) + b"abc",  # an unknown kind
        struct.pack(">BI", Kind.BEAT, (1 << 16) + 1),  # more than a beat may be
        struct.pack(">BI", Kind.STEP, 10) + b"abc",  # ends too early
        b"\x01",
    ],
)
def test_what_is_no_message_closes_the_connection(ends: Ends, words: bytes) -> None:
    wire, theirs = ends
    theirs.sendall(words)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(WireClosed):
        wire.receive()


def test_a_beat_does_not_wait_for_one_who_reads_nothing(ends: Ends) -> None:
    wire, _ = ends
    for _ in range(20_000):
        wire.send_beat(bytes(4096))


def test_tensors_arrive_with_their_bits() -> None:
    found = decode_tensors(bytearray(b"".join(encode_tensors(TENSORS))))
    assert [(it.dtype, it.shape) for it in found] == [(it.dtype, it.shape) for it in TENSORS]
    for ours, theirs in zip(TENSORS, found, strict=True):
        assert ours.contiguous().numpy().tobytes() == theirs.numpy().tobytes()


def test_tensors_that_are_cut_or_claim_too_much_are_refused() -> None:
    whole = b"".join(encode_tensors(TENSORS))
    for end in range(len(whole)):
        with pytest.raises(MalformedTensors):
            decode_tensors(bytearray(whole[:end]))
    with pytest.raises(MalformedTensors, match="after the last"):
        decode_tensors(bytearray(whole + b"\0"))
    for header in (bytes([1, 0, 5]), bytes([1, 9, 1]) + bytes(8), bytes([1, 0, 1]) + b"\xff" * 8):
        with pytest.raises(MalformedTensors):
            decode_tensors(bytearray(header))
