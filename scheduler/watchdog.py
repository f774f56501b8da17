"""Ends an engine process that hangs, so that it is replaced as one that died."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import psutil

from distllm.scheduler.spawn import EngineProcess

logger = logging.getLogger("distllm.scheduler")

STOPPED_S = 1.5
"""How long a process of a starting engine may be stopped, as by SIGSTOP."""
_CHECK_S = 0.25


async def kill_when_hung(
    process: EngineProcess, seconds_without_progress: Callable[[], float], timeout_s: float
) -> None:
    """Return after killing `process`, once work has waited `timeout_s` seconds without a step being finished."""
    while (left_s := timeout_s - seconds_without_progress()) > 0:  # noqa: ASYNC110 - sleeps for as long as it can be right
        await asyncio.sleep(left_s)
    logger.error("no step has been finished for %.0f s; the engine hangs and is replaced", timeout_s)
    process.kill()


async def kill_when_start_hangs(
    process: EngineProcess, is_starting: Callable[[], bool], heard_s: Callable[[], float], timeout_s: float
) -> str | None:
    """While an engine loads its model, kill it once a process of it is stopped, or it is silent for `timeout_s`.

    Returns why it was killed, None if it has started.

    `heard_s` is the time, by time.monotonic, of its last word. Ranks that load keep no common step, by which one
    that hangs could be told otherwise.
    """
    stopped: dict[int, float] = {}
    while is_starting():
        await asyncio.sleep(_CHECK_S)
        now_s = time.monotonic()
        stopped = {pid: stopped.get(pid, now_s) for pid in await asyncio.to_thread(_stopped_processes, process.pid)}
        lasting = [pid for pid, since_s in stopped.items() if now_s - since_s >= STOPPED_S]
        if lasting:
            reason = f"its process {lasting[0]} has been stopped"
        elif now_s - heard_s() >= timeout_s:
            reason = f"nothing was heard of it for {timeout_s:.0f} s"
        else:
            continue
        logger.error("the engine hangs while it starts (%s) and is replaced", reason)
        process.kill()
        return reason
    return None


def _stopped_processes(pid: int) -> list[int]:
    """Those of `pid` and its descendants."""
    stopped = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for member in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if member.status() == psutil.STATUS_STOPPED:
                    stopped.append(member.pid)
    return stopped
