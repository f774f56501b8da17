"""Ranks that DeepSpeed's launcher has placed: the text of our own, whatever is killed, and nothing left behind."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from tests.conftest import RunningServer, running_server

LAUNCHER = ("-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--module")
RANK = "distllm.engine.distributed.launcher.launched_rank"
MAX_TOKENS = 400


@contextmanager
def launched() -> Iterator[RunningServer]:
    with running_server(["--dtype", "float32"], {"DS_ACCELERATOR": "cpu"}, LAUNCHER) as server:
        yield server


def text(url: str) -> str:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        completion = client.completions.create(
            model="distllm-embedded",
            prompt="Once upon a time",
            max_tokens=MAX_TOKENS,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
    return completion.choices[0].text


def text_while(url: str, engine: psutil.Process, victim: psutil.Process, number: signal.Signals) -> str:
    """What is answered when `victim` gets a signal amid the answer, that is when the engine computes."""
    found: list[str] = []
    request = threading.Thread(target=lambda: found.append(text(url)))
    idle_s = sum(engine.cpu_times()[:2])
    request.start()
    while sum(engine.cpu_times()[:2]) < idle_s + 0.05:
        time.sleep(0.01)
    victim.send_signal(number)
    request.join()
    return found[0]


def started(launcher_pid: int, word: str) -> psutil.Process:
    """The one process below the launcher that was started with `word`."""
    (found,) = [it for it in psutil.Process(launcher_pid).children(recursive=True) if word in it.cmdline()]
    return found


def test_a_lost_rank_changes_no_text_and_a_lost_launcher_leaves_nothing() -> None:
    with launched() as server:
        before = text(server.url)
        rank, engine = started(server.process.pid, RANK), psutil.Process(server.engine_pid)
        assert text_while(server.url, engine, rank, signal.SIGKILL) == before
        assert started(server.process.pid, RANK) != rank
        everything = psutil.Process(server.process.pid).children(recursive=True)
        assert len(everything) == 5  # the launcher's second half, server, engine, agent, rank
        started(server.process.pid, "deepspeed.launcher.launch").kill()
        _, alive = psutil.wait_procs(everything, timeout=10)
        assert not alive


def test_another_number_of_ranks_is_refused_in_one_line() -> None:
    counts = {"RANK": 0, "LOCAL_RANK": 0, "CROSS_RANK": 0, "CROSS_SIZE": 1, "WORLD_SIZE": 2, "LOCAL_SIZE": 2}
    place = {name: str(count) for name, count in counts.items()}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    words = "--tensor-parallel-size 3, but the launcher has started 2 ranks"
    with pytest.raises(AssertionError, match=words), running_server(["--tensor-parallel-size", "3"], place):
        pass


@pytest.mark.soak
def test_a_launcher_that_is_asked_to_end_ends_the_server_in_order() -> None:
    with launched() as server:
        everything = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(everything, timeout=30)
        assert not alive
        assert any("Finished server process" in line for line in server.log)


@pytest.mark.soak
def test_two_hosts_give_the_same_text_whatever_is_lost(tmp_path: Path) -> None:
    """Both on this machine, each started as on a host of its own: nothing but connections is shared."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    environment = {"DS_ACCELERATOR": "cpu", "DISTLLM_RANK_SECRET": secrets.token_hex()}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])

    def launcher(host: int) -> list[str]:
        words = [
            "-m",
            "deepspeed.launcher.runner",
            "--hostfile",
            str(hostfile),
            "--no_ssh",
            "--node_rank",
            str(host),
        ]
        return [*words, "--master_addr", "127.0.0.1", "--master_port", port, "--module"]

    command = [sys.executable, *launcher(1), "distllm.server", "serve", "--dtype", "float32"]
    with subprocess.Popen(command, env={**os.environ, **environment}) as second:
        with running_server(["--dtype", "float32"], environment, launcher(0)) as server:
            before = text(server.url)
            for number in (signal.SIGKILL, signal.SIGSTOP):
                for name in ("engine", "rank"):
                    engine = psutil.Process(server.engine_pid)
                    victim = engine if name == "engine" else started(second.pid, RANK)
                    assert text_while(server.url, engine, victim, number) == before
                    assert not victim.is_running()
        assert second.wait(30) == 0
