"""How long an answer is waited for, and how often a call is tried again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger("distllm.pipeline")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """The cluster's: network.timeout_seconds and network.retry_attempts of its coordinator."""

    timeout_s: float = 30.0
    retry_attempts: int = 3

    async def insist(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer, from the first try that gets one. Raises ConnectionError where the last one does."""
        pause_s = _FIRST_PAUSE_S
        for number in range(1, self.retry_attempts + 1):
            try:
                return await ask()
            except ConnectionError as error:
                logger.warning("%s; trying again in %g s, %d of %d", error, pause_s, number, self.retry_attempts)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return await ask()


USUAL = Patience()
"""Of who has not been told another."""
