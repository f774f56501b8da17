"""Server-sent events, from bytes as they arrive. Knows nothing of HTTP or of what the data mean.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class SSEParser:
    """Incremental parser of one event stream. `last_event_id` is that of the last whole event, "" before any."""

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self._id = last_event_id
        self._buffer = b""
        self._data: list[bytes] = []
        self._is_at_start = True
        self._ended_in_cr = False

    def feed(self, received: bytes) -> list[str]:
        """The data of every event that `received` completes, in order. An unfinished event waits for more."""
        if self._ended_in_cr and received.startswith(b"\n"):
            received = received[1:]
            self._ended_in_cr = False
        if not received:
            return []
        self._ended_in_cr = received.endswith(b"\r")
        self._buffer += received
        if self._is_at_start and not self._skip_bom():
            return []
        *lines, self._buffer = _LINE_END.split(self._buffer)
        return [event for line in lines if (event := self._take_line(line)) is not None]

    def _skip_bom(self) -> bool:
        """False while what has arrived may be the first bytes of a byte order mark."""
        if len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer):
            return False
        self._buffer = self._buffer.removeprefix(_BOM)
        self._is_at_start = False
        return True

    def _take_line(self, line: bytes) -> str | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"id" and b"\0" not in value:
            self._id = value.removeprefix(b" ").decode("utf-8", errors="replace")
        return None

    def _dispatch(self) -> str | None:
        self.last_event_id = self._id
        if not self._data:
            return None
        event = b"\n".join(self._data).decode("utf-8", errors="replace")
        self._data.clear()
        return event
