"""The peers that were put out of a cluster, in a file that whoever runs `distllm cluster remove` writes.

They are never forgotten: a machine that joins again gets another id.
"""

from datetime import datetime
from pathlib import Path

import msgspec

from distllm.engine.durable import locked, write_private
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.security.state_dir import ClusterStateError, make_private_dir

_FILE_NAME = "removed.json"


class RemovedPeers:
    """Of one state directory. Any number of processes may have one; each sees at once what another has added."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._path = state_dir / _FILE_NAME
        self._seen: tuple[int, int] | None = None
        self._times: dict[PeerId, datetime] = {}
        self._ids: frozenset[PeerId] = frozenset()

    def add(self, peer_id: PeerId, now: datetime) -> None:
        """It is on disk that the peer is out when this returns. Raises ClusterStateError or OSError."""
        with locked(make_private_dir(self._state_dir)):
            encoded = msgspec.json.encode({**self._read(), peer_id: now})
            write_private(self._path, msgspec.json.format(encoded, indent=1) + b"\n")

    def current(self) -> frozenset[PeerId]:
        """All of them, read when the file has changed. Raises ClusterStateError, once where it is damaged."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return frozenset()
        seen = status.st_ino, status.st_mtime_ns
        if seen != self._seen:
            self._seen = seen
            self._times = self._read()
            self._ids = frozenset(self._times)
        return self._ids

    def since(self, peer_id: PeerId) -> datetime | None:
        """When a peer was put out, as of the latest `current`; None where it was not."""
        return self._times.get(peer_id)

    def _read(self) -> dict[PeerId, datetime]:
        """Since when each is out."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[PeerId, datetime])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise ClusterStateError(
                f"{self._path}, the list of peers that are out, cannot be read: {error}; restore it, or remove "
                "it and put them out again with `distllm cluster remove`"
            ) from None
