"""The engine process, where its front end is not as it should be."""

import asyncio
import socket
import subprocess
import sys
from typing import NoReturn

import psutil
import pytest

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.scheduler.channel import BlockingChannel
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import FromEngine, StartEngine, StartFailed, ToEngine
from distllm.scheduler.process import _load
from distllm.scheduler.spawn import EngineProcess


async def test_a_start_that_is_cancelled_leaves_no_process_behind() -> None:
    start = StartEngine(engine=EngineConfig(model="none"), scheduler=SchedulerConfig())
    starting = asyncio.create_task(EngineProcess.spawn(start))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    running = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in running if "distllm.scheduler.process" in child.cmdline()]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CheckpointError("m has no config.json"), "m has no config.json"),
        (
            RuntimeError("no room\nfor it"),
            "the model cannot be loaded: RuntimeError: no room; --log-level DEBUG shows where",
        ),
        (
            AssertionError(),
            "the model cannot be loaded: AssertionError: no reason given; --log-level DEBUG shows where",
        ),
    ],
)
def test_an_engine_that_cannot_load_its_model_says_why_in_one_line(error: Exception, words: str) -> None:
    ours, theirs = socket.socketpair()

    def build(config: EngineConfig, on_progress: object, on_lost: object, on_cluster: object) -> NoReturn:
        raise error

    channel: BlockingChannel[FromEngine] = BlockingChannel(theirs, FromEngine)
    start = StartEngine(engine=EngineConfig(model="none"), scheduler=SchedulerConfig())
    with ours:
        assert _load(start, build, BlockingChannel(ours, ToEngine)) is None
    assert channel.receive() == StartFailed(words)
    theirs.close()


def test_an_engine_whose_front_end_has_gone_already_ends_quietly() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        ended = subprocess.run(
            [sys.executable, "-m", "distllm.scheduler.process", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
