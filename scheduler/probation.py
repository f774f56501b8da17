"""Which request brought the engine down: after a death, its requests go back one at a time until each has
passed a trial of some steps. Pure book-keeping; knows nothing of processes."""

from collections import defaultdict, deque
from collections.abc import Collection

MAX_STRIKES = 2
MAX_TRIAL_STEPS = 16


class Probation:
    """Suspects of the last engine death, in the order in which they go back.

    A request that is on trial when the engine dies again gets a strike; at MAX_STRIKES it is the culprit. A trial
    is longer for a request that more deaths have involved, so that one that kills late is alone in the end. Nothing
    else joins the engine while trials are going on.
    """

    def __init__(self) -> None:
        self._suspects: deque[str] = deque()
        self._bystanders: dict[str, None] = {}  # in no step when the engine died, or came since; in order
        self._on_trial: str | None = None
        self._num_steps_left = 0
        self._deaths: defaultdict[str, int] = defaultdict(int)
        self._strikes: defaultdict[str, int] = defaultdict(int)

    def engine_died(self, begun: Collection[str], live: Collection[str]) -> str | None:
        """Note a death after the requests `begun`, of those `live`, had been in a step.

        Returns the culprit once it is certain.
        """
        accused = self._accuse(begun)
        for request_id in begun:
            self._deaths[request_id] += 1
        known = {*self._suspects, *begun}
        self._suspects.extend(sorted(known.difference(self._suspects, (accused,))))
        self._bystanders |= dict.fromkeys(request_id for request_id in live if request_id not in known)
        if accused is None:
            return None
        self._strikes[accused] += 1
        if self._strikes[accused] >= MAX_STRIKES:
            self.forget(accused)
            return accused
        self._suspects.appendleft(accused)
        return None

    def admit(self, request_id: str) -> bool:
        """Whether a new request may join the engine at once; if not, `release` names it later."""
        if self._on_trial is None and not self._suspects:
            return True
        self._bystanders[request_id] = None
        return False

    def holds(self, request_id: str) -> bool:
        """Whether the request waits for its turn and must not be in the engine."""
        return request_id in self._suspects or request_id in self._bystanders

    def release(self) -> list[str]:
        """The requests to give to the engine now: none during a trial, then one suspect, in the end all others."""
        if self._on_trial is not None:
            return []
        if not self._suspects:
            released = list(self._bystanders)
            self._bystanders.clear()
            return released
        self._on_trial = self._suspects.popleft()
        self._num_steps_left = min(MAX_TRIAL_STEPS, 2 ** self._deaths[self._on_trial])
        return [self._on_trial]

    def passed_step(self, request_ids: Collection[str]) -> None:
        """These requests came out of a step alive, with tokens."""
        if self._on_trial is None or self._on_trial not in request_ids:
            return
        self._num_steps_left -= 1
        if self._num_steps_left == 0:
            self._strikes.pop(self._on_trial, None)
            self._on_trial = None

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        if request_id == self._on_trial:
            self._on_trial = None
        if request_id in self._suspects:
            self._suspects.remove(request_id)
        self._bystanders.pop(request_id, None)
        self._deaths.pop(request_id, None)
        self._strikes.pop(request_id, None)

    def _accuse(self, begun: Collection[str]) -> str | None:
        """The request on trial, whose trial ends here, or the only one there was.

        One whose trial had not begun is suspected no more than before.
        """
        on_trial, self._on_trial = self._on_trial, None
        if on_trial is not None and on_trial not in begun:
            self._suspects.appendleft(on_trial)
            on_trial = None
        return on_trial or (next(iter(begun)) if len(begun) == 1 else None)
