"""When a refused call is worth repeating, and after how long. Pure; whoever calls does the waiting."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

_FIRST_DELAY_S = 0.5


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Repeat a call that was answered 429 or 503, at most `max_retries` times.

    The server's Retry-After is honoured; where it asks for more than `max_delay_s` the call fails at once rather
    than come back too early. Without one the delay doubles from half a second, with jitter.

    With `resume_within_s` streams are asked for as resumable, and one that breaks is gone on with, if that succeeds
    within so many seconds. The server then goes on for a time when this process dies without closing a stream.
    """

    max_retries: int = 2
    max_delay_s: float = 30.0
    resume_within_s: float | None = None

    def delay_s(self, status: int, headers: Mapping[str, str], num_retries: int) -> float | None:
        """Seconds to wait before retry number `num_retries` + 1, or None to take the answer as it is."""
        if status not in (429, 503) or num_retries >= self.max_retries:
            return None
        asked = retry_after_s(headers)
        if asked is None:
            return min(self.max_delay_s, _FIRST_DELAY_S * (1 << num_retries) * random.uniform(0.5, 1.0))
        return asked if asked <= self.max_delay_s else None


NO_RETRIES = RetryPolicy(max_retries=0)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by Retry-After, which is a number of seconds or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None
