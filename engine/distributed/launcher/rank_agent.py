"""What a process of the launcher does that is not the first rank: keeps a rank running while the server lives.

It owns the rank's connection and process. When the connection ends, so does the process, and another one waits
for the next engine; when nothing listens any more, the server has ended, and so does the agent. Importable without
torch.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import time

from distllm.engine.distributed.launcher.launch import Launch, LaunchError
from distllm.engine.distributed.launcher.rendezvous import connect
from distllm.engine.python_command import python_command

logger = logging.getLogger("distllm.engine")

_JOIN_TIMEOUT_S = 600.0
"""For how long a rank waits for its server to begin."""
_LOST_TIMEOUT_S = 60.0
_RETRY_S = 0.2
_LEAVE_S = 25
"""After a signal: less than the 30 seconds after which the launcher kills."""
_SHORT_LIFE_S = 10.0
_MAX_BACKOFF_S = 5.0


def run_agent(launch: Launch) -> int:
    """Serve until the server ends. Returns the exit status. Raises LaunchError."""
    signal.signal(signal.SIGTERM, _leave_soon)
    signal.signal(signal.SIGINT, _leave_soon)
    signal.signal(signal.SIGALRM, _leave)
    logger.info("rank %d of %d waits for the server at %s", launch.rank, launch.size, launch.address)
    connection: socket.socket | None = _find_server(launch)
    num_short_lives = 0
    while connection is not None:
        started_s = time.monotonic()
        with connection:
            _run_rank(connection)
        num_short_lives = num_short_lives + 1 if time.monotonic() - started_s < _SHORT_LIFE_S else 0
        time.sleep(min(_MAX_BACKOFF_S, 0.1 * (2**num_short_lives - 1)))
        connection = _find_next_engine(launch)
    return 0


def _run_rank(connection: socket.socket) -> None:
    """Run a rank's process until it ends or the other end of its connection closes."""
    descriptor = connection.fileno()
    process = subprocess.Popen(
        python_command("distllm.engine.distributed.launcher.launched_rank", str(descriptor)),
        pass_fds=(descriptor,),
        stdin=subprocess.DEVNULL,
        stdout=2,  # what libraries print is no output of the server's
    )
    try:
        life = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(life, select.POLLIN)
        poll.register(descriptor, select.POLLRDHUP)
        poll.poll()
        os.close(life)
    finally:
        process.kill()
        process.wait()


def _find_server(launch: Launch) -> socket.socket:
    """Wait for the server to listen. Raises LaunchError when it never does."""
    deadline_s = time.monotonic() + _JOIN_TIMEOUT_S
    while True:
        try:
            return connect(launch)
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise LaunchError(
                    f"rank {launch.rank} found no server at {launch.address}:{launch.port}: {error}"
                ) from None
            time.sleep(_RETRY_S)


def _find_next_engine(launch: Launch) -> socket.socket | None:
    """None once the server has ended, or cannot be reached for long."""
    deadline_s = time.monotonic() + _LOST_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            return connect(launch)
        except ConnectionRefusedError:
            return None
        except OSError:
            time.sleep(_RETRY_S)
    logger.error("rank %d cannot reach the server at %s any more", launch.rank, launch.address)
    return None


def _leave_soon(*_: object) -> None:
    """The server has most likely been told as well, and needs its ranks until it has ended."""
    signal.alarm(_LEAVE_S)


def _leave(*_: object) -> None:
    raise SystemExit(0)
