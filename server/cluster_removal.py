"""`distllm cluster remove`: puts a peer out of a cluster."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from distllm.engine.pipeline.coordinator.event_file import EventFile
from distllm.engine.pipeline.security.peer_id import COORDINATOR, InvalidPeerId, parse_peer_id
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.engine.pipeline.security.state_dir import ClusterStateError, default_cluster_dir
from distllm.server.config import InvalidSettings


def remove_peer(state: Path | None, name: str) -> int:
    """Exit status: 0 once it is out. Raises InvalidSettings for what can be no peer's name, or OSError."""
    try:
        peer_id = parse_peer_id(name)
    except InvalidPeerId as error:
        raise InvalidSettings(f"PEER: {error}") from None
    if peer_id == COORDINATOR:
        raise InvalidSettings(f"PEER: {COORDINATOR} is the coordinator itself, which cannot be put out")
    try:
        directory = default_cluster_dir() if state is None else state.expanduser()
        if not directory.is_dir():
            raise InvalidSettings(f"--state: there is no {directory}: name the directory of the coordinator")
        RemovedPeers(directory).add(peer_id, datetime.now(UTC))
    except ClusterStateError as error:
        sys.stderr.write(f"distllm: {error}\n")
        return 1
    seen = dict.fromkeys(event.peer_id for event in EventFile(directory).read() if event.peer_id is not None)
    if peer_id not in seen:
        others = ", ".join(seen) or "none"
        sys.stderr.write(f"distllm: no {peer_id} was seen here lately, is it mistyped? Seen were: {others}\n")
    sys.stdout.write(
        f"{peer_id} is out: its certificate is refused from now on. It can join again with a new token.\n"
    )
    return 0
