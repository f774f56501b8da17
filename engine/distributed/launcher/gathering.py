"""The engine's side of the rendezvous: takes the connections of ranks that a launcher has placed, and no others."""

import logging
import select
import socket
import threading
import time

from distllm.engine.distributed.launcher.handshake import HandshakeError, admit
from distllm.engine.distributed.launcher.launch import LaunchError
from distllm.engine.distributed.launcher.rendezvous import check_user, prepare
from distllm.engine.progress import Progress

logger = logging.getLogger("distllm.engine")

JOIN_TIMEOUT_S = 600.0
_MAX_STRANGERS = 512
"""So many at once may be slow to say who they are; more are sent away."""
_POLL_S = 0.2


def gather_ranks(
    listener: socket.socket, secret: bytes, size: int, on_progress: Progress, timeout_s: float = JOIN_TIMEOUT_S
) -> list[socket.socket]:
    """Wait for the ranks 1 .. size - 1 to come: their connections in this order. Raises LaunchError."""
    listener.settimeout(_POLL_S)
    gathering = _Gathering(listener, secret, size)
    try:
        accepting = threading.Thread(target=gathering.accept_forever, name="accept-ranks", daemon=True)
        accepting.start()
        try:
            _wait(gathering, size, on_progress, timeout_s)
        finally:
            gathering.is_over.set()
            accepting.join()
    except BaseException:
        gathering.close()
        raise
    return gathering.connections()


def _wait(gathering: "_Gathering", size: int, on_progress: Progress, timeout_s: float) -> None:
    """Raises LaunchError when not all ranks have come in time."""
    deadline_s = time.monotonic() + timeout_s
    while missing := gathering.missing():
        on_progress("waiting for the launcher's ranks", 1 - len(missing) / size)
        if time.monotonic() > deadline_s:
            raise LaunchError(
                f"after {timeout_s:g} s the launcher's rank {', '.join(map(str, missing))} has not come: was the "
                "launcher started on its host?"
            )
        gathering.has_come.wait(_POLL_S)
        gathering.has_come.clear()


class _Gathering:
    """Each connection has a thread of its own until it is admitted or refused, so that none waits for another.

    A rank that comes again takes the place of its former connection.
    """

    def __init__(self, listener: socket.socket, secret: bytes, size: int) -> None:
        self._listener = listener
        self._secret = secret
        self._size = size
        self._admitted: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._strangers = threading.BoundedSemaphore(_MAX_STRANGERS)
        self._num_refused = 0
        self.has_come = threading.Event()
        self.is_over = threading.Event()

    def accept_forever(self) -> None:
        while not self.is_over.is_set():
            try:
                connection, place = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:  # no descriptors at the moment: strangers give theirs back in seconds
                self.is_over.wait(_POLL_S)
                continue
            if self._strangers.acquire(blocking=False):
                threading.Thread(target=self._admit_or_refuse, args=(connection, place), daemon=True).start()
            else:
                connection.close()
        if self._num_refused > 1:
            logger.warning("refused %d connections while the ranks were waited for", self._num_refused)

    def _admit_or_refuse(self, connection: socket.socket, place: object) -> None:
        try:
            rank = self._admit(connection)
        except OSError as error:
            connection.close()
            if isinstance(error, HandshakeError):
                self._note_refusal(place, error)
            return
        finally:
            self._strangers.release()
        with self._lock:
            if self.is_over.is_set():
                connection.close()
                return
            former = self._admitted.pop(rank, None)
            self._admitted[rank] = connection
        if former is not None:
            former.close()
        self.has_come.set()

    def _note_refusal(self, place: object, error: HandshakeError) -> None:
        """The first has a line in the log, the rest one together."""
        with self._lock:
            self._num_refused += 1
            is_first = self._num_refused == 1
        if is_first:
            logger.warning("refused a connection from %s: %s", place or "this host", error)

    def missing(self) -> list[int]:
        """The ranks that have not come, or have gone again."""
        with self._lock:
            here = {rank for rank, connection in self._admitted.items() if not _has_ended(connection)}
        return [rank for rank in range(1, self._size) if rank not in here]

    def connections(self) -> list[socket.socket]:
        return [self._admitted[rank] for rank in range(1, self._size)]

    def close(self) -> None:
        for connection in self._admitted.values():
            connection.close()

    def _admit(self, connection: socket.socket) -> int:
        """Raises OSError for whatever is no rank of this launch."""
        if connection.family == socket.AF_UNIX:
            check_user(connection)
        else:
            prepare(connection)
        return admit(connection, self._secret, self._size)


def _has_ended(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))
