"""How many connections are open at once. At the limit the one that has been idle longest makes room, so that a
flood of idle connections locks nobody out. Knows nothing of HTTP."""

import logging
import time
from typing import Protocol

logger = logging.getLogger("distllm.server")

_SECONDS_BETWEEN_WARNINGS = 60.0


class Closable(Protocol):
    """A connection as the limit sees it. `close` may take effect later."""

    def close(self) -> None: ...


class ConnectionLimit:
    """At most `max_connections` admitted ones. A connection is idle until it is said to be busy."""

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._idle: dict[Closable, None] = {}  # longest idle first
        self._busy: set[Closable] = set()
        self._warned_at = -_SECONDS_BETWEEN_WARNINGS

    @property
    def num_open(self) -> int:
        return len(self._idle) + len(self._busy)

    def admit(self, connection: Closable) -> bool:
        """Take a new connection, closing an idle one if need be. False when every one is busy."""
        if self.num_open >= self._max_connections and not self._make_room():
            return False
        self._idle[connection] = None
        return True

    def mark_busy(self, connection: Closable) -> None:
        """A whole request has come: the connection stays until it is answered."""
        if connection in self._idle:
            del self._idle[connection]
            self._busy.add(connection)

    def mark_idle(self, connection: Closable) -> None:
        """Nothing is being answered."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = None

    def forget(self, connection: Closable) -> None:
        """The connection is closed, or was never admitted."""
        self._idle.pop(connection, None)
        self._busy.discard(connection)

    def _make_room(self) -> bool:
        self._warn()
        longest_idle = next(iter(self._idle), None)
        if longest_idle is None:
            return False
        del self._idle[longest_idle]
        longest_idle.close()
        return True

    def _warn(self) -> None:
        if time.monotonic() - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = time.monotonic()
            logger.warning(
                "%d connections are open (%d busy), as many as this server holds: the longest idle are closed",
                self.num_open,
                len(self._busy),
            )
