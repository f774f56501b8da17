"""Which request brought the engine down: after a death, its requests go back one at a time until each has
passed a step. Pure book-keeping; knows nothing of processes."""

from collections import deque
from collections.abc import Iterable

MAX_STRIKES = 2


class Probation:
    """Suspects of the last engine death, in the order in which they go back.

    A request that is alone on trial when the engine dies again gets a strike; at MAX_STRIKES it is the culprit.
    Requests that no death has involved never wait.
    """

    def __init__(self) -> None:
        self._suspects: deque[str] = deque()
        self._on_trial: str | None = None
        self._strikes: dict[str, int] = {}

    def engine_died(self, released: Iterable[str]) -> str | None:
        """Note a death while `released` requests were in the engine. Returns the culprit once it is certain."""
        present = list(released)
        sole_suspect = self._on_trial or (present[0] if len(present) == 1 else None)
        if sole_suspect is None:
            self._suspects.extend(request_id for request_id in present if request_id not in self._suspects)
            return None
        self._on_trial = None
        self._strikes[sole_suspect] = self._strikes.get(sole_suspect, 0) + 1
        if self._strikes[sole_suspect] >= MAX_STRIKES:
            self.forget(sole_suspect)
            return sole_suspect
        self._suspects.appendleft(sole_suspect)
        return None

    def holds(self, request_id: str) -> bool:
        """Whether the request waits for its trial and must not be in the engine."""
        return request_id in self._suspects

    def next_trial(self) -> str | None:
        """The suspect to release now; None while one is on trial or none is left."""
        if self._on_trial is not None or not self._suspects:
            return None
        self._on_trial = self._suspects.popleft()
        return self._on_trial

    def passed_step(self, request_id: str) -> None:
        """The request came out of a step alive."""
        if request_id == self._on_trial:
            self._on_trial = None
            self._strikes.pop(request_id, None)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        if request_id == self._on_trial:
            self._on_trial = None
        if request_id in self._suspects:
            self._suspects.remove(request_id)
        self._strikes.pop(request_id, None)
