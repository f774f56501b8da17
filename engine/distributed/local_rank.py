"""A rank on the first rank's host: a child of this process, or one that a launcher's agent has started."""

import contextlib
import socket
import subprocess
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Protocol

from distllm.engine.distributed.shared_memory_link import Descriptors
from distllm.engine.python_command import python_command


class LocalRank(Protocol):
    """The first rank's hold on another whose memory it shares."""

    number: int
    control: Connection

    def fault(self) -> str | None:
        """Why the rank cannot go on, in one line; None while it can."""

    def kill(self) -> None: ...

    def end(self) -> None:
        """Kill it, and leave nothing of it."""


class SpawnedRank:
    """A child process and the connections to it."""

    def __init__(self, number: int, arrivals: int, frame: int) -> None:
        self.number = number
        self.control, control = Pipe()
        self._alarm, alarm = Pipe()
        descriptors = Descriptors(control.fileno(), alarm.fileno(), arrivals, frame)
        self._process = subprocess.Popen(
            python_command("distllm.engine.distributed.rank", descriptors.text()),
            pass_fds=descriptors.numbers(),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what libraries print is no output of the server's
        )
        control.close()
        alarm.close()

    def fault(self) -> str | None:
        with contextlib.suppress(EOFError, OSError):  # it has ended, as its exit status will tell
            if self._alarm.poll():
                return self._alarm.recv_bytes().decode()
        code = self._process.poll()
        if code is None:
            return None
        end = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"rank {self.number} ended ({end})"

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def end(self) -> None:
        self.kill()
        self._process.wait()
        self.control.close()
        self._alarm.close()


class LaunchedRank:
    """A process that has connected to this one, and that its agent kills when the connection closes."""

    def __init__(self, number: int, connection: socket.socket, arrivals: int, frame: int) -> None:
        self.number = number
        self._alarm, alarm = Pipe()
        with alarm:
            socket.send_fds(connection, [b"\0"], [alarm.fileno(), arrivals, frame])
        self._connection = connection
        self.control = Connection(connection.fileno())

    def fault(self) -> str | None:
        try:
            return self._alarm.recv_bytes().decode() if self._alarm.poll() else None
        except (EOFError, OSError):
            return f"rank {self.number} ended"

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.kill()
        self._connection.detach()
        self.control.close()
        self._alarm.close()
