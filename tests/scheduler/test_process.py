"""The engine process, where its front end is not as it should be."""

import asyncio
import socket
import subprocess
import sys

import psutil
import pytest

from distllm.engine.config import EngineConfig
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import StartEngine
from distllm.scheduler.spawn import EngineProcess


async def test_a_start_that_is_cancelled_leaves_no_process_behind() -> None:
    start = StartEngine(engine=EngineConfig(model="none"), scheduler=SchedulerConfig())
    starting = asyncio.create_task(EngineProcess.spawn(start))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not [child for child in psutil.Process().children() if "distllm.scheduler.process" in child.cmdline()]


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
