"""Where a client is in a stream: the `id:` of its events."""

import re
from dataclasses import dataclass

from distllm.server.errors import InvalidRequest, shown

HEADER = "Last-Event-ID"
REMEDY = "send the id of the last event that came, or GET /v1/streams/{x-stream-id} without it for all events"
MAX_COUNTS = 64
"""Every event has a count for each choice: of many choices, most of a stream would be ids."""
_FORM = re.compile(r"([a-z]+-[0-9a-f]{32})-((?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8}))*)")


@dataclass(frozen=True, slots=True)
class EventId:
    """The client has `counts[i]` events of choice i, written cmpl-...-17, or cmpl-...-17.15 for two choices.

    The counts are a choice's own, because choices run side by side in an order that no second run need repeat,
    while the events of one choice are the same in every run.
    """

    request_id: str
    counts: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.request_id}-{'.'.join(map(str, self.counts))}"

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Raises InvalidRequest for what is no id of ours."""
        match = _FORM.fullmatch(text)
        if match is None or match[2].count(".") >= MAX_COUNTS:
            raise InvalidRequest(
                f"{HEADER} must be the id of an event of this server, as it came, not {shown(text)!r}; {REMEDY}",
                HEADER,
            )
        return cls(match[1], tuple(map(int, match[2].split("."))))
