"""Fixtures that start the real server, as a user would, on a port that the system chooses."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
_READY_LINE = re.compile(r"ready at (http://\S+)")


@dataclass
class RunningServer:
    """A `distllm serve` process, or what has launched it. `log` is what it has printed so far, line by line."""

    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def engine_pid(self) -> int:
        """The engine process of the moment."""
        (engine,) = [
            child.pid
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if "distllm.scheduler.process" in child.cmdline()
        ]
        return engine

    def terminate(self) -> int:
        """Send SIGTERM and wait for the end. Returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


def is_soon(claim: Callable[[], bool], timeout_s: float = 15.0) -> bool:
    """Whether `claim` comes true in time."""
    end_s = time.monotonic() + timeout_s
    while not claim() and time.monotonic() < end_s:
        time.sleep(0.05)
    return claim()


StartServer = Callable[..., RunningServer]
"""start_server("--max-num-seqs", "4", environment={...}): a server of the test's own, ended with the test."""


@contextmanager
def running_server(
    arguments: Sequence[str], environment: dict[str, str], launcher: Sequence[str] = ("-m",)
) -> Iterator[RunningServer]:
    """`launcher` are the words between Python and our module."""
    command = [sys.executable, *launcher, "distllm.server", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    server = RunningServer(process)
    is_ready = threading.Event()

    def follow_log() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.log.append(line.rstrip())
            if match := _READY_LINE.search(line):
                server.url = match[1]
                is_ready.set()
        is_ready.set()

    reader = threading.Thread(target=follow_log, daemon=True)
    reader.start()
    try:
        assert is_ready.wait(START_TIMEOUT_S), f"the server was not ready in time: {server.log}"
        assert server.url, f"the server ended before it was ready: {server.log}"
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(STOP_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[RunningServer]:
    """The embedded model with default settings, shared by the whole session; tests must leave it healthy."""
    with running_server([], {}) as server:
        yield server


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    with ExitStack() as stack:

        def start(*arguments: str | Path, environment: dict[str, str] | None = None) -> RunningServer:
            words = [str(argument) for argument in arguments]
            return stack.enter_context(running_server(words, environment or {}))

        yield start
