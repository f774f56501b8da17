"""Whether the coordinator itself has been awake: what it could not hear is no peer's silence."""

import asyncio
import time
from collections.abc import Callable

_TURN_S = 0.05
_LATE_S = 0.25


class Wakefulness:
    """`run` it in the loop that hears peers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s = self._turned_s = clock()

    @property
    def awake_s(self) -> float:
        """How long the loop has turned without a pause; 0 where it has just come back and has heard nobody yet."""
        now_s = self._clock()
        return 0.0 if now_s - self._turned_s > _LATE_S else now_s - self._since_s

    async def run(self) -> None:
        """For ever."""
        while True:
            self.turn()
            await asyncio.sleep(_TURN_S)

    def turn(self) -> None:
        """The loop turns."""
        if self.awake_s == 0.0:
            self._since_s = self._clock()
        self._turned_s = self._clock()
