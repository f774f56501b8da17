"""Where ranks that a launcher has placed meet the engine: a socket that the first rank's front end holds open.

On one host it is a Unix socket, which none but this user may use; across hosts a TCP port of the first host's
address. The socket outlives engines, so that ranks wait in it for the next one, and ends with the server, by which
they know. Importable without torch.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from distllm.engine.distributed.launcher.launch import Launch, LaunchedRanks, LaunchError, launcher_binds_cores

_BACKLOG = 256
_CREDENTIALS = struct.Struct("iII")  # process, user, group
_SILENCE_MS = 15_000
_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 5, "TCP_USER_TIMEOUT": _SILENCE_MS}


@contextmanager
def listen_for_ranks(launch: Launch | None) -> Iterator[LaunchedRanks | None]:
    """The place to meet, held open by the front end of rank 0. None where there are no other ranks to meet.

    Raises LaunchError where it cannot be had.
    """
    if launch is None or launch.size == 1:
        yield None
        return
    with _listen(launch) as listener:
        yield LaunchedRanks(
            size=launch.size,
            num_local=launch.local_size,
            num_hosts=launch.num_hosts,
            address=launch.address,
            listener=listener.fileno(),
            binds_cores=launcher_binds_cores(),
        )


def connect(launch: Launch) -> socket.socket:
    """Another rank's connection. Raises OSError, ConnectionRefusedError where nothing listens."""
    if launch.num_hosts == 1:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(_unix_name(launch))
        check_user(connection)
        return connection
    connection = socket.create_connection((launch.address, launch.port), timeout=_SILENCE_MS / 1000)
    connection.settimeout(None)
    prepare(connection)
    return connection


def prepare(connection: socket.socket) -> None:
    """Let a TCP connection end when its other end cannot be reached, and send without delay."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def check_user(connection: socket.socket) -> None:
    """Raises PermissionError where another user's process is at the other end of a Unix socket."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(found)[1] != os.getuid():
        connection.close()
        raise PermissionError("another user's process is at the other end")


def _listen(launch: Launch) -> socket.socket:
    if sys.platform != "linux":
        raise LaunchError(
            "ranks that a launcher places need Linux; give --tensor-parallel-size without the launcher"
        )
    try:
        if launch.num_hosts > 1:
            ((family, *_), *_) = socket.getaddrinfo(launch.address, launch.port, type=socket.SOCK_STREAM)
            return socket.create_server((launch.address, launch.port), family=family, backlog=_BACKLOG)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(_unix_name(launch))
        listener.listen(_BACKLOG)
    except OSError as error:
        raise LaunchError(
            f"the ranks cannot meet at {launch.address}:{launch.port}: {error.strerror}; see the launcher's "
            "--master_addr and --master_port"
        ) from None
    return listener


def _unix_name(launch: Launch) -> str:
    """In the abstract namespace, of which a kill leaves nothing; all processes of a launch have one parent."""
    return f"\0distllm-ranks-{os.getuid()}-{os.getppid()}-{launch.port}"
