"""How far a peer is trusted with a stage: less for a while after it was blamed, and for longer each time.

blamed                  +pause                        +max(5 s, pause)
  |  not used at all     |  used where nobody else is  |  used like any other

One that was only away, or not heard, is used where nobody else is as soon as it is back.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

_FORGIVEN_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_GOOD_S = 60.0
"""After as long without blame the next pause is the first again."""


@dataclass(slots=True)
class Standing:
    clock: Callable[[], float] = time.monotonic
    _reason: str | None = None
    _blamed_s: float = 0.0
    _pause_s: float = 0.0
    _absence: tuple[float, str] | None = None

    @property
    def trouble(self) -> str | None:
        """Why others are used first; None once that is forgiven."""
        if self._blame is None and self._absence is not None and self.clock() <= self._absence[0] + _FORGIVEN_S:
            return self._absence[1]
        return self._blame

    @property
    def is_blamed(self) -> bool:
        """Whether its trouble is its own fault: it was not only away."""
        return self._blame is not None

    @property
    def may_be_needed(self) -> bool:
        """Whether it may serve where nobody else can."""
        return self._blame is None or self.clock() > self._blamed_s + self._pause_s

    @property
    def _blame(self) -> str | None:
        return None if self.clock() > self._blamed_s + max(_FORGIVEN_S, self._pause_s) else self._reason

    def note_absence(self, reason: str) -> None:
        """It was lost, which may have been no fault of its own."""
        self._absence = self.clock(), reason

    def blame(self, reason: str) -> None:
        """What is blamed on it again before it served again is the same fault."""
        now_s = self.clock()
        if self._blame is None:
            is_first = self._pause_s == 0.0 or now_s > self._blamed_s + self._pause_s + _GOOD_S
            self._pause_s = _FIRST_PAUSE_S if is_first else min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._blamed_s = now_s
            self._reason = reason

    def forgive(self) -> None:
        """It gets another try; how often it was blamed is remembered."""
        self._reason = self._absence = None
