"""What makes a peer one of its cluster: its identity, by which others know it, and who are no members any more."""

from datetime import UTC, datetime
from pathlib import Path

from distllm.engine.pipeline.messages import Removed, Welcome
from distllm.engine.pipeline.patience import USUAL, Patience
from distllm.engine.pipeline.peer.expiry import explain_expiry
from distllm.engine.pipeline.peer.joining import renew
from distllm.engine.pipeline.peer.mismatch import find_mismatch
from distllm.engine.pipeline.security.encryption import read_encryption
from distllm.engine.pipeline.security.host import is_loopback
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.join_token import JoinRefused
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.security.ticket import TicketCheck
from distllm.engine.pipeline.transport.app import PeerApp, Post, certified_caller, ticketed_caller
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable
from distllm.engine.pipeline.transport.server import Http2Server


class Membership:
    """Of the cluster of `coordinator`, by the identity in `directory`."""

    def __init__(self, coordinator: Address, directory: Path) -> None:
        self.coordinator = coordinator
        self.patience: Patience = USUAL  # until the coordinator tells its own
        self._directory = directory
        self._identity = IdentityFiles.current(directory).read()
        self._is_encrypted = read_encryption(directory)
        self._removed: frozenset[str] = frozenset()

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def expires_at(self) -> datetime:
        return self._identity.expires_at

    @property
    def needs_renewal(self) -> bool:
        return self._identity.needs_renewal(datetime.now(UTC))

    def take(self, message: Welcome | Removed) -> None:
        """What the coordinator says of its cluster."""
        match message:
            case Welcome():
                self.patience, self._removed = message.patience, message.removed
            case Removed():
                self._removed = message.peer_ids

    def server(self, max_body_bytes: int, posts: dict[str, Post], listen: tuple[str, int]) -> Http2Server:
        """One that answers `posts` of members, with the certificate of the moment."""
        tickets = ticketed_caller(TicketCheck(self._identity.authority_pem, self.peer_id))
        app = PeerApp(
            max_body_bytes,
            posts,
            open_posts={},
            streams={},
            identify=certified_caller if self._is_encrypted else tickets,
            is_removed=lambda caller: caller in self._removed,
        )
        files = IdentityFiles.current(self._directory) if self._is_encrypted else None
        return Http2Server(app, *listen, files)

    async def connect(self, address: Address) -> Http2Client:
        """Raises Unreachable.

        Without encryption nothing leaves this machine unless the coordinator is on another, as somebody insisted.
        """
        if not self._is_encrypted and is_loopback(self.coordinator.host) and not is_loopback(address.host):
            raise Unreachable(
                f"{address.peer_id} says that it is at {address.host}, on another machine: nothing is sent there "
                "without encryption"
            )
        return await Http2Client.open(address, self._identity, self.patience, is_encrypted=self._is_encrypted)

    async def connect_to_coordinator(self) -> Http2Client:
        """Raises Unreachable."""
        return await self.connect(self.coordinator)

    async def renew(self, uplink: Http2Client, hosts: list[str]) -> None:
        """Get another certificate. Raises Unreachable, JoinRefused or InvalidIdentity."""
        self._identity = await renew(uplink, self._identity, hosts, self._directory)

    async def explain_unreachable(self) -> str | None:
        """Why the coordinator cannot be reached, where that is known. Raises JoinRefused where it never can be."""
        now, encrypted = datetime.now(UTC), self._is_encrypted
        expiry = await explain_expiry(self.coordinator, self._identity, now, is_encrypted=encrypted)
        if expiry is not None:
            raise JoinRefused(expiry)
        return await find_mismatch(self.coordinator, is_encrypted=encrypted)
