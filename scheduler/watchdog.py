"""Ends an engine process that hangs, so that it is replaced as one that died."""

import asyncio
import logging
from collections.abc import Callable

from distllm.scheduler.spawn import EngineProcess

logger = logging.getLogger("distllm.scheduler")


async def kill_when_hung(
    process: EngineProcess, seconds_without_progress: Callable[[], float], timeout_s: float
) -> None:
    """Return after killing `process`, once work has waited `timeout_s` seconds without a step being finished."""
    while (left_s := timeout_s - seconds_without_progress()) > 0:  # noqa: ASYNC110 - sleeps for as long as it can be right
        await asyncio.sleep(left_s)
    logger.error("no step has been finished for %.0f s; the engine hangs and is replaced", timeout_s)
    process.kill()
