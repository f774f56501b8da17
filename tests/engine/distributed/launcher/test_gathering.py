"""An engine takes its ranks' connections, whatever else comes."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from distllm.engine.distributed.launcher.gathering import gather_ranks
from distllm.engine.distributed.launcher.handshake import introduce
from distllm.engine.distributed.launcher.launch import LaunchError

SECRET = b"what all ranks of this launch know"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def come(listener: socket.socket, first_words: bytes = b"") -> socket.socket:
    connection = socket.create_connection(listener.getsockname())
    connection.sendall(first_words)
    return connection


def test_ranks_are_taken_in_their_order_and_strangers_are_not(listener: socket.socket) -> None:
    with ThreadPoolExecutor() as pool, closing(come(listener, b"GET / HTTP/1.1\r\n\r\n" + bytes(64))) as stranger:
        gathered = pool.submit(gather_ranks, listener, SECRET, 3, lambda *_: None)
        ranks = {}
        for number in (2, 1):
            ranks[number] = come(listener)
            introduce(ranks[number], SECRET, number)
        connections = gathered.result(30)
        assert [it.getpeername() for it in connections] == [ranks[number].getsockname() for number in (1, 2)]
        stranger.settimeout(30)
        assert len(stranger.recv(4096)) == 48  # the greeting alone
        assert _is_closed(stranger)
        for connection in (*connections, *ranks.values()):
            connection.close()


def test_strangers_that_say_nothing_keep_no_rank_waiting(listener: socket.socket) -> None:
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(come(listener))
        gathered = pool.submit(gather_ranks, listener, SECRET, 2, lambda *_: None, 4.0)
        rank = stack.enter_context(come(listener))
        introduce(rank, SECRET, 1)
        (connection,) = gathered.result(30)  # a stranger has five seconds to say who it is
        assert connection.getpeername() == rank.getsockname()
        connection.close()


def test_a_rank_that_has_gone_again_is_waited_for(listener: socket.socket) -> None:
    with ThreadPoolExecutor() as pool:
        gathered = pool.submit(gather_ranks, listener, SECRET, 3, lambda *_: None)
        with come(listener) as gone:
            introduce(gone, SECRET, 1)
        with come(listener) as second, come(listener) as first:
            introduce(second, SECRET, 2)
            introduce(first, SECRET, 1)
            connections = gathered.result(30)
            assert [it.getpeername() for it in connections] == [first.getsockname(), second.getsockname()]
            for connection in connections:
                connection.close()


def test_ranks_that_do_not_come_are_named(listener: socket.socket) -> None:
    with come(listener) as first, ThreadPoolExecutor() as pool:
        gathered = pool.submit(gather_ranks, listener, SECRET, 4, lambda *_: None, 0.3)
        introduce(first, SECRET, 1)
        with pytest.raises(LaunchError, match="rank 2, 3 has not come"):
            gathered.result(30)


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
