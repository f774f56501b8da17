"""A rank that a launcher's agent has started: joins the engine at the other end of a connection.

Started as `python -m distllm.engine.distributed.launcher.launched_rank DESCRIPTOR`, in the launcher's environment.
"""

import logging
import os
import socket
import sys

from distllm.engine.distributed.hosts.wire import Wire
from distllm.engine.distributed.hosts.wire_link import WireLink
from distllm.engine.distributed.launcher.handshake import HandshakeError, introduce
from distllm.engine.distributed.launcher.launch import SECRET_VARIABLE, Launch, find_launch, read_secret
from distllm.engine.distributed.rank import FirstRankLink, run_rank
from distllm.engine.distributed.shared_memory_link import Descriptors, SharedMemoryLink
from distllm.engine.parent_death import end_with_parent, leave_signals_to_the_front_end

logger = logging.getLogger("distllm.engine")

_NUM_DESCRIPTORS = 3


def main(descriptor: int) -> int:
    """Run the rank until the engine has gone. Returns an exit status where it cannot join."""
    launch = find_launch(os.environ)
    assert launch is not None
    connection = socket.socket(fileno=descriptor)
    try:
        introduce(connection, read_secret(os.environ, launch.num_hosts), launch.rank)
    except HandshakeError as error:
        logger.warning(
            "rank %d and the server at %s do not come together: %s; %s must be the same on every host",
            launch.rank, launch.address, error, SECRET_VARIABLE,
        )  # fmt: skip
        return 1
    except OSError:  # the server has ended
        return 0
    run_rank(_open_link(connection, launch))
    return 0


def _open_link(connection: socket.socket, launch: Launch) -> FirstRankLink:
    if launch.num_hosts > 1:
        return WireLink(Wire(connection), launch)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, _NUM_DESCRIPTORS)
    return SharedMemoryLink(Descriptors(connection.detach(), *descriptors))


if __name__ == "__main__":
    leave_signals_to_the_front_end()
    end_with_parent()
    sys.exit(main(int(sys.argv[1])))
