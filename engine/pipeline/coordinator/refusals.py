"""The stages that a peer could not load, and for how long that is believed: what was in the way may have gone."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distllm.engine.pipeline.messages import StageConfig

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 600.0
_GROWTH, _LEAST_GROWTH_BYTES = 1.25, 64 << 20
"""Memory that has grown so many times, and by so much, is worth another try at once."""


@dataclass(slots=True)
class _Refusal:
    reason: str
    free_bytes: int
    until_s: float
    pause_s: float


class Refusals:
    """Of one boot of a peer. Each time that it refuses a stage again, that is believed for twice as long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusals: dict[StageConfig, _Refusal] = {}

    def note(self, config: StageConfig, reason: str, free_bytes: int) -> None:
        """The peer had so much free memory when it was asked."""
        before = self._refusals.get(config)
        pause_s = _FIRST_PAUSE_S if before is None else min(2 * before.pause_s, _LONGEST_PAUSE_S)
        self._refusals[config] = _Refusal(reason, free_bytes, self._clock() + pause_s, pause_s)

    def note_free(self, free_bytes: int) -> None:
        """The peer's free memory now: where it has grown, there may be room for what there was none for."""
        for refusal in self._refusals.values():
            if free_bytes > max(_GROWTH * refusal.free_bytes, refusal.free_bytes + _LEAST_GROWTH_BYTES):
                refusal.until_s = self._clock()

    def reason(self, config: StageConfig) -> str | None:
        """Why the peer cannot have a stage; None where there is no reason any more not to ask."""
        refusal = self._refusals.get(config)
        return None if refusal is None or self._clock() >= refusal.until_s else refusal.reason

    def believed(self) -> Iterator[tuple[StageConfig, str]]:
        """All that have a reason."""
        for config in self._refusals:
            if (reason := self.reason(config)) is not None:
                yield config, reason
