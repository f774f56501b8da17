"""The emulated link: what it does to bytes, and when they arrive."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks.link import CLEAR, CUT, Conditions, Link


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(end: socket.socket) -> None:
        with end:
            try:
                while piece := end.recv(1 << 16):
                    end.sendall(piece)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(end,), daemon=True).start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    accepting.join()
    listener.close()


@pytest.fixture
def link(echo: tuple[str, int]) -> Iterator[Link]:
    with closing(Link(echo)) as link:
        yield link


def connect(link: Link) -> socket.socket:
    end = socket.create_connection(("127.0.0.1", link.port))
    end.settimeout(10)
    return end


def exchange(end: socket.socket, sent: bytes) -> tuple[bytes, float]:
    """What comes back, and after how many seconds."""
    began_s = time.monotonic()
    end.sendall(sent)
    return receive(end, len(sent)), time.monotonic() - began_s


def receive(end: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes:
        received += end.recv(1 << 16)
    return received


def test_a_clear_link_changes_nothing(link: Link) -> None:
    sent = bytes(range(256)) * 4000
    with connect(link) as end:
        threading.Thread(target=end.sendall, args=(sent,)).start()
        assert receive(end, len(sent)) == sent


def test_both_directions_are_delayed(link: Link) -> None:
    link.become(Conditions(delay_s=0.05))
    with connect(link) as end:
        _, took_s = exchange(end, b"x")
    assert 0.1 <= took_s < 0.2


def test_the_rate_holds_for_all_connections_together(link: Link) -> None:
    link.forward.become(Conditions(rate=1e6))
    with connect(link) as one, connect(link) as other:
        began_s = time.monotonic()
        one.sendall(bytes(50_000))
        exchange(other, bytes(50_000))
        receive(one, 50_000)
        assert time.monotonic() - began_s >= 0.1


def test_what_is_sent_into_a_cut_arrives_once_it_is_mended(link: Link) -> None:
    with connect(link) as end:
        exchange(end, b"before")
        link.forward.become(CUT)
        end.sendall(b"within")
        end.settimeout(0.2)
        with pytest.raises(TimeoutError):
            end.recv(1)
        link.forward.become(CLEAR)
        end.settimeout(10)
        assert end.recv(100) == b"within"


def test_a_cut_of_one_direction_leaves_the_other(link: Link) -> None:
    with connect(link) as end:
        link.backward.become(CUT)
        end.sendall(b"there")
        end.settimeout(0.2)
        with pytest.raises(TimeoutError):
            end.recv(1)


def test_exactly_one_bit_is_damaged(link: Link) -> None:
    sent = bytes(1000)
    with connect(link) as end:
        link.forward.damage()
        received, _ = exchange(end, sent)
        assert sum(byte.bit_count() for byte in received) == 1
        assert exchange(end, sent)[0] == sent


def test_lost_segments_hold_up_what_follows(link: Link) -> None:
    link.forward.become(Conditions(delay_s=0.01, loss=0.999999))
    with connect(link) as end:
        received, took_s = exchange(end, b"first")
    assert received == b"first"
    assert took_s >= 0.03


def test_a_reset_breaks_connections_and_takes_new_ones(link: Link) -> None:
    with connect(link) as end:
        exchange(end, b"x")
        link.reset()
        assert end.recv(1) == b""
    with connect(link) as end:
        assert exchange(end, b"y")[0] == b"y"
