"""The packet link: what it does to packets by itself, and to the kernels of two namespaces."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.link import CLEAR, CUT, Conditions
from benchmarks.machines import Machines
from benchmarks.namespaces import Namespace
from benchmarks.packet_link import PacketDirection
from tests.machines import machines_if_allowed

NEAR, FAR = "near", "far"
PACKET = bytes(1000)


def test_a_packet_arrives_after_the_delay_and_not_before() -> None:
    direction = PacketDirection(Conditions(delay_s=0.5), seed=0)
    direction.enter(PACKET, 100.0)
    assert direction.next_due_s == 100.5
    assert list(direction.leave(100.25)) == []
    assert list(direction.leave(100.5)) == [PACKET]
    assert direction.next_due_s is None


def test_packets_follow_each_other_at_the_rate() -> None:
    direction = PacketDirection(Conditions(rate=1000), seed=0)
    for _ in range(3):
        direction.enter(PACKET, 100.0)
    assert [len(list(direction.leave(now_s))) for now_s in (100.5, 101.0, 102.0, 103.0)] == [0, 1, 1, 1]


def test_what_finds_no_room_in_the_queue_is_lost() -> None:
    direction = PacketDirection(Conditions(rate=1000), seed=0, max_queue_bytes=2500)
    for _ in range(10):
        direction.enter(PACKET, 100.0)
    assert direction.num_lost == 7
    assert len(list(direction.leave(200.0))) == 3


def test_the_same_seed_loses_the_same_packets() -> None:
    def arrived(seed: int) -> list[bytes]:
        direction = PacketDirection(Conditions(loss=0.3), seed)
        for number in range(1000):
            direction.enter(number.to_bytes(2, "big"), 100.0)
        return list(direction.leave(100.0))

    assert arrived(1) == arrived(1) != arrived(2)
    assert 600 < len(arrived(1)) < 800


def test_a_cut_loses_what_is_sent_and_what_would_arrive() -> None:
    direction = PacketDirection(Conditions(delay_s=1.0), seed=0)
    direction.enter(b"would arrive", 100.0)
    direction.become(CUT)
    direction.enter(b"is sent", 100.5)
    assert list(direction.leave(101.0)) == []
    direction.become(CLEAR)
    direction.enter(b"later", 102.0)
    assert list(direction.leave(102.0)) == [b"later"]
    assert (direction.num_carried, direction.num_lost) == (1, 2)


@pytest.fixture
def machines() -> Iterator[Machines]:
    with machines_if_allowed((NEAR, FAR)) as machines:
        yield machines


@contextmanager
def connection(machines: Machines) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection, the near one first."""
    with machines[FAR].entered():
        listener = socket.create_server((machines[FAR].address, 0))
    with listener:
        with machines[NEAR].entered():
            near = socket.create_connection(listener.getsockname())
        with near:
            far, _ = listener.accept()
            with far:
                for end in (near, far):
                    end.settimeout(30)
                yield near, far


def datagram_socket(namespace: Namespace) -> socket.socket:
    with namespace.entered():
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind((namespace.address, 0))
    end.settimeout(0.5)
    return end


def receive(end: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes and (piece := end.recv(1 << 16)):
        received += piece
    return bytes(received)


def become(machines: Machines, conditions: Conditions) -> None:
    for direction in machines.directions():
        direction.become(conditions)


def test_a_clear_link_changes_nothing(machines: Machines) -> None:
    sent = os.urandom(4_000_000)
    with connection(machines) as (near, far):
        sending = threading.Thread(target=near.sendall, args=(sent,))
        sending.start()
        assert receive(far, len(sent)) == sent
        sending.join()


def test_both_ways_are_delayed(machines: Machines) -> None:
    become(machines, Conditions(delay_s=0.05))
    with connection(machines) as (near, far):
        began_s = time.monotonic()
        near.sendall(b"x")
        far.sendall(receive(far, 1))
        receive(near, 1)
        assert 0.1 <= time.monotonic() - began_s < 5


def test_the_rate_holds(machines: Machines) -> None:
    machines.direction(NEAR, FAR).become(Conditions(rate=1e6))
    with connection(machines) as (near, far):
        began_s = time.monotonic()
        sending = threading.Thread(target=near.sendall, args=(bytes(500_000),))
        sending.start()
        receive(far, 500_000)
        assert 0.5 <= time.monotonic() - began_s < 10
        sending.join()


def test_lost_datagrams_stay_lost(machines: Machines) -> None:
    become(machines, Conditions(loss=0.5))
    with datagram_socket(machines[NEAR]) as near, datagram_socket(machines[FAR]) as far:
        for number in range(100):
            near.sendto(bytes([number]), far.getsockname())
        received: list[int] = []
        with suppress(TimeoutError):
            while True:
                received += far.recv(1)
    assert 20 < len(received) < 80
    assert received == sorted(set(received))


def test_what_tcp_loses_is_sent_again(machines: Machines) -> None:
    become(machines, Conditions(delay_s=0.005, loss=0.05))
    sent = os.urandom(1_000_000)
    with connection(machines) as (near, far):
        sending = threading.Thread(target=near.sendall, args=(sent,))
        sending.start()
        assert receive(far, len(sent)) == sent
        sending.join()
    assert machines.direction(NEAR, FAR).num_lost > 0


def test_what_tcp_sends_into_a_cut_arrives_once_it_is_mended(machines: Machines) -> None:
    with connection(machines) as (near, far):
        become(machines, CUT)
        near.sendall(b"within")
        far.settimeout(0.3)
        with pytest.raises(TimeoutError):
            far.recv(1)
        become(machines, CLEAR)
        far.settimeout(30)
        assert receive(far, 6) == b"within"


def test_a_cut_of_one_way_leaves_the_other(machines: Machines) -> None:
    machines.direction(FAR, NEAR).become(CUT)
    with datagram_socket(machines[NEAR]) as near, datagram_socket(machines[FAR]) as far:
        near.sendto(b"there", far.getsockname())
        assert far.recv(100) == b"there"
        far.sendto(b"back", near.getsockname())
        with pytest.raises(TimeoutError):
            near.recv(100)


def test_nothing_is_left_of_machines_though_a_process_there_was_killed() -> None:
    devices = socket.if_nameindex()
    with machines_if_allowed((NEAR, FAR)) as machines:
        with machines[NEAR].entered():
            inside = os.stat("/proc/thread-self/ns/net").st_ino
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        assert inside in namespaces_in_use()
        assert socket.if_nameindex() == devices
        child.kill()
        child.wait()
    assert inside not in namespaces_in_use()
    assert socket.if_nameindex() == devices


def namespaces_in_use() -> set[int]:
    """By a process, or by a descriptor of one."""
    found = set()
    for pattern in ("[0-9]*/task/*/ns/net", f"{os.getpid()}/fd/*"):
        for path in Path("/proc").glob(pattern):
            try:
                found.add(path.stat().st_ino)
            except OSError:
                continue
    return found
