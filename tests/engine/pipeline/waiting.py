"""Waiting for something that other tasks bring about."""

import asyncio
from collections.abc import Callable

TIMEOUT_S = 20.0
_LOOK_S = 0.01


async def until(holds: Callable[[], object]) -> None:
    """Return once it holds. Fails if that takes too long."""
    for _ in range(int(TIMEOUT_S / _LOOK_S)):
        if holds():
            return
        await asyncio.sleep(_LOOK_S)
    raise AssertionError("it did not come about in time")
