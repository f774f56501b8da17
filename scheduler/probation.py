"""Which request brought the engine down: after a death, its requests go back one at a time until each has
passed a step. Pure book-keeping; knows nothing of processes."""

from collections import deque
from collections.abc import Collection

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

    def engine_died(self, begun: Collection[str]) -> str | None:
        """Note a death after `begun` requests had been in a step. Returns the culprit once it is certain."""
        sole_suspect = self._find_sole_suspect(begun)
        if sole_suspect is None:
            self._suspects.extend(sorted(set(begun).difference(self._suspects)))
            return None
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

    def _find_sole_suspect(self, begun: Collection[str]) -> str | None:
        """The request on trial, whose trial ends here, or the only one there was.

        One whose trial had not begun is suspected no more than before.
        """
        on_trial, self._on_trial = self._on_trial, None
        if on_trial is not None and on_trial not in begun:
            self._suspects.appendleft(on_trial)
            on_trial = None
        return on_trial or (next(iter(begun)) if len(begun) == 1 else None)
