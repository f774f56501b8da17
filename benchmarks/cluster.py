"""A coordinator and its peers, as processes on this machine for the length of a test or a measurement.

What the cluster does is read from the coordinator's log, as an operator would.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from benchmarks.link import Link
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.security.token_store import TokenStore
from distllm.engine.pipeline.transport.client import Address

LOOPBACK = "127.0.0.1"
ONE_NUMERICS = ("--dtype", "float32")
"""For servers whose tokens are compared: in bfloat16 each process measures which order of sums is faster."""
_START_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 20.0
_LOOK_S = 0.02
_TAIL_CHARACTERS = 4000
_READY = re.compile(r"ready at (http://\S+)")
_STAGES = re.compile(r"serving over (.*), after")
_STAGE = re.compile(r"(\S+)-[0-9a-f]{4} \[(\d+), (\d+)\)")


class ClusterFailed(Exception):
    """The cluster did not do what was waited for; the message ends with its logs."""


@dataclass(slots=True)
class PeerProcess:
    """A `distllm peer`. Behind links, `uplink` leads to the coordinator and `inbound` from other peers to it."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    state_dir: Path
    uplink: Link | None = None
    inbound: Link | None = None

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """At once, whatever it does, and wait for the end."""
        self.process.kill()
        self.process.wait()
        for link in (self.uplink, self.inbound):
            if link is not None:
                link.close()


@dataclass(slots=True)
class Cluster:
    """Get one from `running_cluster`. `words` are the command that started its server, `host` is its address."""

    directory: Path
    port: int
    server: "subprocess.Popen[bytes]"
    words: Sequence[str]
    model: str
    host: str
    peers: dict[str, PeerProcess] = field(default_factory=dict)
    num_restarts: int = 0

    @property
    def state_dir(self) -> Path:
        return self.directory / "coordinator"

    @property
    def base_url(self) -> str:
        match = _READY.search(self.log())
        assert match is not None, "the cluster is not ready yet"
        return match[1]

    @property
    def stages(self) -> list[str]:
        """The names of the peers that serve, first stage first; empty before any has served."""
        return self.pipelines[-1] if self.pipelines else []

    @property
    def pipelines(self) -> list[list[str]]:
        """The stages of every pipeline that there has been."""
        return [[name for name, _, _ in _STAGE.findall(chain)] for chain in _STAGES.findall(self.log())]

    @property
    def engine(self) -> psutil.Process:
        """The coordinator's process of the moment."""
        children = psutil.Process(self.server.pid).children(recursive=True)
        return next(child for child in children if "distllm.scheduler.process" in child.cmdline())

    @property
    def num_epochs(self) -> int:
        """How many pipelines there have been."""
        return len(self.pipelines)

    @property
    def num_losses(self) -> int:
        """How often a stage was found lost."""
        return self.log().count(" is lost: ")

    @property
    def spares(self) -> list[str]:
        """Running peers that have no stage."""
        return [name for name, peer in self.peers.items() if peer.is_running and name not in self.stages]

    @property
    def coordinator_address(self) -> Address:
        """Where peers find it."""
        return Address(COORDINATOR, self.host, self.port)

    def address_of(self, name: str) -> Address:
        """Where the newest process of a peer told others to reach it."""
        *_, (digits, host, port) = re.findall(rf" {name}-([0-9a-f]{{4}}) is here, at (\S+):(\d+)", self.log())
        return Address(PeerId(f"{name}-{digits}"), host, int(port))

    def cache_of(self, name: str) -> Path:
        """Where a peer keeps weights that were sent to it."""
        return self.directory / f"{name}-weights"

    @property
    def log_file(self) -> Path:
        """Where `distllm serve` prints to."""
        return self.directory / "serve.log"

    def log(self) -> str:
        """What `distllm serve` has printed."""
        return self.log_file.read_text(errors="replace")

    def log_tails(self) -> str:
        """The last lines of every process."""
        files = [self.log_file, *(peer.log for peer in self.peers.values())]
        tails = [file.read_text(errors="replace")[-_TAIL_CHARACTERS:] for file in files]
        return "\n".join(f"--- {file.name}\n{tail}" for file, tail in zip(files, tails, strict=True))

    def make_token(self) -> str:
        now = datetime.now(UTC)
        fingerprint = ClusterAuthority.open(self.state_dir, now).fingerprint
        return TokenStore(self.state_dir, fingerprint).make(timedelta(hours=1), now)

    def start_peer(
        self, name: str, *arguments: str, host: str = LOOPBACK, is_behind_links: bool = False
    ) -> PeerProcess:
        """Start a peer, or one that has ended again. It has one thread unless `arguments` say otherwise.

        It runs in the network namespace of this thread; `host` is its address.
        """
        if name in self.peers:
            self.peers.pop(name).end()
        state_dir = self.directory / name
        join = [] if (state_dir / "current").exists() else ["--token", self.make_token()]
        uplink = inbound = None
        address, places = (self.host, self.port), ["--host", host]
        if is_behind_links:
            own_port = free_port()
            uplink, inbound = Link(address), Link((LOOPBACK, own_port))
            address = (LOOPBACK, uplink.port)
            places += ["--port", str(inbound.port), "--listen", f"{LOOPBACK}:{own_port}"]
        words = ["--join", f"{address[0]}:{address[1]}", *join, *places, "--name", name, "--state", str(state_dir)]
        words += ["--cache", str(self.cache_of(name)), "--num-threads", "1"]
        words += [*(["--model", self.model] if self.model else []), *arguments]
        log = self.directory / f"{name}.log"
        process = _start(["peer", *words], log)
        self.peers[name] = PeerProcess(name, process, log, state_dir, uplink, inbound)
        return self.peers[name]

    def wait_until(self, claim: Callable[[], bool], what: str, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Raises ClusterFailed where `claim` does not come true in time, or the server has ended."""
        end_s = time.monotonic() + timeout_s
        while not claim():
            if self.server.poll() is not None or time.monotonic() > end_s:
                raise ClusterFailed(f"not within {timeout_s:g} s: {what}\n{self.log_tails()}")
            time.sleep(_LOOK_S)

    def wait_until_ready(self) -> None:
        num_servers = self.num_restarts + 1
        self.wait_until(lambda: len(_READY.findall(self.log())) == num_servers, "the server is ready")

    def kill_server(self) -> None:
        """All processes of `distllm serve` at once; peers stay."""
        tree = _tree(self.server.pid)
        for process in tree:
            process.kill()
        self.server.wait()
        psutil.wait_procs(tree, _END_TIMEOUT_S)

    def start_server_again(self) -> None:
        self.num_restarts += 1
        self.server = _start(self.words, self.log_file)

    def wait_until_serving(self, num_stages: int, num_spares: int = 0) -> None:
        """Over stages that all run, with spares that have loaded all of them."""
        self.wait_until(
            lambda: self._is_serving(num_stages) and self.num_warm_spares >= num_spares,
            f"{num_stages} stages serve, and {num_spares} spares are warm",
        )

    def has_loaded(self, name: str, layers: tuple[int, int]) -> bool:
        """Whether the newest process of a peer has, and has not lost them since."""
        peer_id, span = f" {name}-{self._digits(name)}", f"[{layers[0]}, {layers[1]})"
        _, is_here, since = self.log().rpartition(f"{peer_id} is here, at")
        return bool(is_here) and since.rfind(f"{peer_id} has loaded {span}") > since.rfind(
            f"{peer_id} has lost {span}"
        )

    def _digits(self, name: str) -> str:
        """What the coordinator has put behind a peer's name."""
        match = re.search(rf" {name}-([0-9a-f]{{4}}) joined", self.log())
        return match[1] if match else ""

    def _is_serving(self, num_stages: int) -> bool:
        return len(self.stages) == num_stages and all(self.peers[name].is_running for name in self.stages)

    @property
    def num_warm_spares(self) -> int:
        """Peers without a stage that have loaded all of them."""
        chain = _STAGES.findall(self.log())[-1]
        layers = [(int(begin), int(end)) for _, begin, end in _STAGE.findall(chain)]
        return sum(all(self.has_loaded(name, each) for each in layers) for name in self.spares)

    def end(self) -> None:
        """End all processes, whatever they do."""
        tree = _tree(self.server.pid)
        self.server.terminate()
        for peer in self.peers.values():
            peer.end()
        _, alive = psutil.wait_procs(tree, _END_TIMEOUT_S)
        for process in alive:
            process.kill()
        self.server.wait()


@contextmanager
def running_cluster(
    directory: Path,
    *,
    num_stages: int = 2,
    model: str = "",
    arguments: Sequence[str] = (),
    coordinator: str = "",
    network: str = "",
    host: str = LOOPBACK,
) -> Iterator[Cluster]:
    """A `distllm serve` that waits for peers, with `arguments`; all its processes end on the way out.

    `model` is the embedded one by default. `coordinator` and `network` are settings of these sections, as in
    `encryption: false`. The server runs in the network namespace of this thread; peers reach it at `host`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = directory / "cluster.yaml"
    place = f"host: {host}, port: {port}, num_stages: {num_stages}"
    settings.write_text(f"coordinator: {{{place}, {coordinator}}}\nnetwork: {{{network}}}\n")
    words = ["serve", *([model] if model else []), "--coordinator", str(settings)]
    words += ["--state", str(directory / "coordinator"), "--port", "0", *arguments]
    cluster = Cluster(directory, port, _start(words, directory / "serve.log"), words, model, host)
    try:
        yield cluster
    finally:
        cluster.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _start(words: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    """`distllm`, writing to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "distllm.server", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )


def _tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants; none where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
