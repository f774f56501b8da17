"""Server processes for the length of a measurement: start, wait until ready, watch, end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil


class ServerFailedError(Exception):
    """The server ended or did not become ready; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start one kind of server: its arguments with {model} and {port}, and what says that it is ready."""

    name: str
    arguments: tuple[str, ...]
    ready_path: str

    def fill(self, model: str, port: int) -> list[str]:
        """The arguments; without a model, none for it."""
        filled = [argument.format(model=model, port=port) for argument in self.arguments]
        return [argument for argument in filled if argument]


_BIN = Path(sys.executable).parent
OURS = Command("distllm serve", (str(_BIN / "distllm"), "serve", "{model}", "--port", "{port}"), "/health/ready")
TRANSFORMERS = Command(
    "transformers serve --continuous-batching",
    (str(_BIN / "transformers"), "serve", "{model}", "--continuous-batching", "--port", "{port}"),
    "/health",
)


@dataclass(frozen=True, slots=True)
class RunningServer:
    base_url: str
    process: psutil.Process
    start_s: float

    def memory_bytes(self) -> int:
        """Resident memory of the process and its children, shared pages once (PSS)."""
        return sum(process.memory_full_info().pss for process in self.tree())

    def tree(self) -> list[psutil.Process]:
        """The process, then all its descendants."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def running(
    command: Command, model: str, log: Path, extra: Sequence[str] = (), timeout_s: float = 180.0
) -> Iterator[RunningServer]:
    """A server on a free loopback port, ended on the way out; it writes to `log`. Raises ServerFailedError."""
    port = _free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            [*command.fill(model, port), *extra],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,
        )
        try:
            base_url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, base_url + command.ready_path, log, timeout_s)
            yield RunningServer(base_url, psutil.Process(process.pid), time.perf_counter() - began_s)
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise ServerFailedError(f"the server ended with status {process.returncode}:\n{_tail(log)}")
        try:
            if httpx.get(url, timeout=5.0, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise ServerFailedError(f"the server was not ready within {timeout_s:g} s:\n{_tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, insist. The process leads its own session, so what it started ends with it."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
