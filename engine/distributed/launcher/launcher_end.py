"""Ends what DeepSpeed's launcher has started when the launcher itself is killed. Importable without torch.

`deepspeed` starts deepspeed.launcher.launch, which starts the ranks. Neither ends what it started when it is
killed: the ranks end with the second, and ask the second to end in order when the first has gone.
"""

import os
import select
import signal
import threading
from pathlib import Path

import psutil

from distllm.engine.distributed.launcher.launch import Launch
from distllm.engine.parent_death import end_with_parent

_COMMANDS = {"deepspeed", "deepspeed.pt", "ds"}
_MODULE = "deepspeed.launcher.runner"


def end_with_launcher(launch: Launch) -> None:
    """From now on this process ends with the launcher. To be called in the main thread."""
    end_with_parent()
    runner = _find_runner()
    if launch.local_rank == 0 and runner is not None:
        watch = threading.Thread(target=_watch, args=(runner, os.getppid()), name="watch-launcher", daemon=True)
        watch.start()


def _find_runner() -> int | None:
    """The descriptor of the `deepspeed` command, where that started this process's parent."""
    try:
        parent = psutil.Process().parent()
        runner = parent and parent.parent()
        if runner and any(Path(word).name in _COMMANDS or word == _MODULE for word in runner.cmdline()):
            return os.pidfd_open(runner.pid)
    except (psutil.Error, OSError):
        pass
    return None


def _watch(runner: int, launcher_pid: int) -> None:
    """The launcher forwards the signal to every rank of this host."""
    poll = select.poll()
    poll.register(runner, select.POLLIN)
    poll.poll()
    os.kill(launcher_pid, signal.SIGTERM)
