"""Who does not know the secret, or speaks otherwise, does not get in: on either side."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from distllm.engine.distributed.launcher import handshake
from distllm.engine.distributed.launcher.handshake import HandshakeError, admit, introduce

SECRET = b"what all ranks of this launch know"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    engine, rank = socket.socketpair()
    with engine, rank:
        yield engine, rank


Ends = tuple[socket.socket, socket.socket]


def test_a_rank_that_knows_the_secret_is_admitted(ends: Ends) -> None:
    engine, rank = ends
    with ThreadPoolExecutor() as pool:
        introduced = pool.submit(introduce, rank, SECRET, 2)
        assert admit(engine, SECRET, 3) == 2
        introduced.result()


def test_a_rank_that_does_not_know_the_secret_is_refused(ends: Ends) -> None:
    engine, rank = ends
    with ThreadPoolExecutor() as pool:
        introduced = pool.submit(introduce, rank, b"another secret altogether", 2)
        with pytest.raises(HandshakeError, match="does not know the secret"):
            admit(engine, SECRET, 3)
        engine.shutdown(socket.SHUT_RDWR)
        with pytest.raises(HandshakeError, match="closed"):
            introduced.result()


def test_an_engine_that_does_not_know_the_secret_is_not_obeyed(ends: Ends) -> None:
    engine, rank = ends
    with ThreadPoolExecutor() as pool:
        introduced = pool.submit(introduce, rank, SECRET, 2)
        engine.sendall(handshake._GREETING + bytes(32))
        assert engine.recv(4096)
        engine.sendall(bytes(32))
        with pytest.raises(HandshakeError, match="does not know the secret"):
            introduced.result()


@pytest.mark.parametrize("number", [0, 3, 4_000_000_000])
def test_a_rank_that_there_is_not_is_refused(ends: Ends, number: int) -> None:
    engine, rank = ends
    with ThreadPoolExecutor() as pool:
        introduced = pool.submit(introduce, rank, SECRET, number)
        with pytest.raises(HandshakeError, match=f"rank {number} of 3"):
            admit(engine, SECRET, 3)
        engine.shutdown(socket.SHUT_RDWR)
        with pytest.raises(HandshakeError):
            introduced.result()


def test_one_who_says_nothing_is_not_waited_for_long(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.05)
    with pytest.raises(TimeoutError):
        admit(ends[0], SECRET, 3)


def test_what_is_no_engine_is_left(ends: Ends) -> None:
    ends[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64))
    with pytest.raises(HandshakeError, match="no engine"):
        introduce(ends[1], SECRET, 1)
