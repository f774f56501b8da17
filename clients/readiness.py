"""How long to wait for a server that is starting, and for which answers waiting helps. Pure but for the clock."""

import time

from distllm.clients.errors import (
    ClientError,
    ConnectionLostError,
    NotReadyError,
    RequestTimeoutError,
    ServerUnreachableError,
)
from distllm.clients.results import Health

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 1.0


class Readiness:
    """The deadline of one wait, and the growing delays between its looks."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._delay_s = _FIRST_DELAY_S

    def delay_s(self, seen: Health | ClientError) -> float:
        """Seconds until the next look. Raises `seen` where waiting cannot help, NotReadyError when time is up."""
        if isinstance(seen, ClientError) and not isinstance(
            seen, ServerUnreachableError | ConnectionLostError | RequestTimeoutError
        ):
            raise seen
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            said = seen if isinstance(seen, ClientError) else seen.details.get("status", "no reason given")
            raise NotReadyError(f"the server was not ready within {self._timeout_s:g} s: {said}")
        delay_s = min(self._delay_s, left_s)
        self._delay_s = min(_LONGEST_DELAY_S, self._delay_s * 1.5)
        return delay_s
