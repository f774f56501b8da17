"""What may befall a cluster. A fault holds as long as its context, and is mended when that ends."""

import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum

import psutil

from benchmarks.cluster import Cluster, PeerProcess
from benchmarks.link import CLEAR, CUT, Direction


class Phase(Enum):
    """What the victim does when the fault comes. In LOAD it is a peer that has just come, else the last stage."""

    LOAD = "load"
    PREFILL = "prefill"
    MID_CHUNK = "mid-chunk"
    DECODE = "decode"
    RECOVERING = "recovering"


@dataclass(frozen=True, slots=True)
class Fault:
    """`befall` gets the cluster and the victim; the fault is mended `hold_s` later.

    Where it `ends_server`, clients connect again, and resume their streams.
    """

    name: str
    befall: Callable[[Cluster, PeerProcess], AbstractContextManager[None]]
    hold_s: float = 0.0
    phases: tuple[Phase, ...] = tuple(Phase)
    ends_server: bool = False


@contextmanager
def killed(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    victim.process.kill()
    victim.process.wait()
    yield


@contextmanager
def stopped(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    victim.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        victim.send_signal(signal.SIGCONT)


@contextmanager
def slowed(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    """To a hundredth of its speed: it runs for 2 of every 200 ms."""
    is_over = threading.Event()

    def run_and_stop() -> None:
        while not is_over.wait(0.002):
            victim.send_signal(signal.SIGSTOP)
            is_over.wait(0.198)
            victim.send_signal(signal.SIGCONT)

    with _meanwhile(run_and_stop, is_over):
        yield


@contextmanager
def cut_off(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    """Nothing reaches it, and nothing that it says arrives."""
    with _cut([*_to(victim), *_from(victim)]):
        yield


@contextmanager
def unheard(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    """It hears all, and nothing that it says arrives."""
    with _cut(_from(victim)):
        yield


@contextmanager
def deaf(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    """What it says arrives, and nothing reaches it."""
    with _cut(_to(victim)):
        yield


@contextmanager
def flapping(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    """Cut off for 300 of every 600 ms."""
    is_over = threading.Event()
    directions = [*_to(victim), *_from(victim)]

    def flap() -> None:
        while not is_over.is_set():
            with _cut(directions):
                is_over.wait(0.3)
            is_over.wait(0.3)

    with _meanwhile(flap, is_over):
        yield


@contextmanager
def damaged(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    """One bit of what it gets is flipped, and one of what it says."""
    for direction in (*_to(victim), *_from(victim)):
        direction.damage()
    yield


@contextmanager
def unacknowledged(_: Cluster, victim: PeerProcess) -> Iterator[None]:
    """Answers are lost and the connections with them, so that what had arrived is sent again."""
    assert victim.uplink is not None
    assert victim.inbound is not None
    with _cut([victim.uplink.backward, victim.inbound.backward]):
        time.sleep(0.1)
        victim.uplink.reset()
        victim.inbound.reset()
    yield


@contextmanager
def coordinator_killed(cluster: Cluster, _: PeerProcess) -> Iterator[None]:
    """Its process; the server starts another."""
    cluster.engine.kill()
    yield


@contextmanager
def server_killed(cluster: Cluster, _: PeerProcess) -> Iterator[None]:
    """All its processes; it is started again with the same state."""
    cluster.kill_server()
    cluster.start_server_again()
    cluster.wait_until_ready()
    yield


@contextmanager
def without_memory(cluster: Cluster, victim: PeerProcess) -> Iterator[None]:
    """The peer comes again, with too little memory for one sequence."""
    cluster.start_peer(victim.name, "--kv-cache-memory", "0.0001", is_behind_links=True)
    cluster.wait_until(lambda: f"{victim.name}-" in _refusals(cluster), "the peer says that it cannot load")
    yield


@contextmanager
def coordinator_disk_full(cluster: Cluster, _: PeerProcess) -> Iterator[None]:
    """The coordinator can write no file while a machine wants to join. The machine is refused."""
    engine, unlimited = cluster.engine, resource.RLIM_INFINITY
    engine.rlimit(psutil.RLIMIT_FSIZE, (0, unlimited))
    try:
        newcomer = cluster.start_peer("newcomer")
        newcomer.process.wait(60)
        yield
    finally:
        engine.rlimit(psutil.RLIMIT_FSIZE, (unlimited, unlimited))
        cluster.peers.pop("newcomer").end()


@contextmanager
def peer_disk_full(cluster: Cluster, _: PeerProcess) -> Iterator[None]:
    """A machine joins, and then can write none of the weights that it is sent."""
    newcomer = cluster.start_peer("newcomer")
    try:
        cluster.wait_until(lambda: "newcomer-" in _arrivals(cluster), "it is here")
        process = psutil.Process(newcomer.process.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (newcomer.log.stat().st_size, resource.RLIM_INFINITY))
        cluster.wait_until(lambda: "newcomer-" in _refusals(cluster), "the peer says that it cannot load")
        yield
    finally:
        cluster.peers.pop("newcomer").end()


def _arrivals(cluster: Cluster) -> str:
    return _lines_with(cluster, " is here, at ")


def _refusals(cluster: Cluster) -> str:
    return _lines_with(cluster, " cannot load its layers: ")


def _lines_with(cluster: Cluster, words: str) -> str:
    return "\n".join(line for line in cluster.log().splitlines() if words in line)


def _to(victim: PeerProcess) -> list[Direction]:
    assert victim.uplink is not None
    assert victim.inbound is not None
    return [victim.uplink.backward, victim.inbound.forward]


def _from(victim: PeerProcess) -> list[Direction]:
    """All that the last stage says: it has no successor."""
    assert victim.uplink is not None
    assert victim.inbound is not None
    return [victim.uplink.forward, victim.inbound.backward]


@contextmanager
def _cut(directions: list[Direction]) -> Iterator[None]:
    for direction in directions:
        direction.become(CUT)
    try:
        yield
    finally:
        for direction in directions:
            direction.become(CLEAR)


@contextmanager
def _meanwhile(work: Callable[[], None], is_over: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


FAULTS = (
    Fault("SIGKILL", killed),
    Fault("SIGSTOP 1 s", stopped, 1),
    Fault("SIGSTOP 5 s", stopped, 5),
    Fault("SIGSTOP 60 s", stopped, 60),
    Fault("cut off 5 s", cut_off, 5),
    Fault("unheard 5 s", unheard, 5),
    Fault("deaf 5 s", deaf, 5),
    Fault("flapping 5 s", flapping, 5),
    Fault("100x slow 5 s", slowed, 5),
    Fault("corrupt bytes", damaged),
    Fault("duplicate frames", unacknowledged),
    Fault("coordinator killed", coordinator_killed),
    Fault("server killed", server_killed, ends_server=True),
    Fault("out of memory", without_memory, phases=(Phase.LOAD,)),
    Fault("coordinator's disk", coordinator_disk_full, phases=(Phase.LOAD,)),
    Fault("peer's disk", peer_disk_full, phases=(Phase.LOAD,)),
)
