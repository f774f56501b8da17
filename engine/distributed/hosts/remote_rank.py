"""The first rank's hold on one that may be on another host: a wire, and a thread that listens to it."""

import threading
import time
from queue import SimpleQueue

import msgspec

from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.hosts.wire import Kind, Wire, WireClosed

Report = tuple[int, int]
"""A rank's counter of arrivals and that of its pulses."""


class RankLost(ConnectionError):
    """A rank's connection has ended before it gave its result."""


class RemoteRank:
    """Rank `number`, which is at the other end of `wire`. Notes what it says of itself in `arrivals`."""

    def __init__(self, number: int, wire: Wire, arrivals: Arrivals) -> None:
        self.number = number
        self.wire = wire
        self._name = f"rank {number} at {wire.peer}"
        self._arrivals = arrivals
        self._results: SimpleQueue[bytearray | None] = SimpleQueue()
        self._reason: str | None = None
        self._thread = threading.Thread(target=self._listen, name=f"listen-{number}", daemon=True)
        self._thread.start()

    def next_result(self) -> bytearray:
        """Wait for the rank's next result. Raises RankLost."""
        result = self._results.get()
        if result is None:
            raise RankLost(self._reason)
        return result

    def fault(self, patience_s: float | None) -> str | None:
        """Why the rank cannot go on; None while it can. It may be silent for `patience_s`, None for any time."""
        if self._reason is not None:
            return self._reason
        silence_s = time.monotonic() - self.wire.heard_s
        if patience_s is not None and silence_s >= patience_s:
            return f"{self._name} has not been heard of for {patience_s:g} s"
        return None

    def close(self) -> None:
        """The rank's agent kills it then."""
        self.wire.close()

    def _listen(self) -> None:
        try:
            while True:
                kind, message = self.wire.receive()
                if kind is Kind.RESULT:
                    self._results.put(message)
                elif kind is Kind.BEAT:
                    self._arrivals.note(self.number, *msgspec.json.decode(message, type=Report))
                elif kind is Kind.ALARM:
                    self._reason = f"{self._name}: {message.decode(errors='replace')}"
                else:
                    raise WireClosed(f"a message of kind {kind.name} is not a rank's to send")
        except (WireClosed, msgspec.MsgspecError) as error:
            self._reason = self._reason or f"{self._name} ended, or its connection did: {error}"
            self.wire.close()
        self._results.put(None)
