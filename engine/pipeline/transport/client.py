"""An HTTP/2 client to one machine of the cluster. It says who it is by its certificate, without TLS by tickets."""

import asyncio
import gc
import ipaddress
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from distllm.engine.pipeline.patience import USUAL, Patience
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.security.peer_id import PeerId, server_name
from distllm.engine.pipeline.security.ticket import Tickets
from distllm.engine.pipeline.transport.app import PUT_OUT, TICKET_HEADER
from distllm.engine.pipeline.transport.server import FRAME_BYTES, WINDOW_BYTES

_SETTLE_S = 0.05
"""The client's threads take that long to end; the interpreter must not end before them."""


class Unreachable(ConnectionError):
    """No answer: the machine, the way to it, or its certificate is at fault."""


class TurnedAway(Unreachable):
    """The machine will not have this caller, however often it calls."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a machine listens, and the id that its certificate must say."""

    peer_id: PeerId
    host: str
    port: int


class Http2Client:
    """Close it. Each client has a connection of its own. `patience` is for its users to have."""

    def __init__(
        self,
        address: Address,
        ip: str,
        identity: PeerIdentity | None,
        authority_pem: bytes | None,
        patience: Patience = USUAL,
        *,
        is_encrypted: bool = True,
    ) -> None:
        name = server_name(address.peer_id)
        builder = (
            ClientBuilder()
            .http2_prior_knowledge()
            .https_only(is_encrypted)
            .no_proxy()
            .follow_redirects(False)
            .resolve(name, ip, address.port)
            .http2_initial_stream_window_size(WINDOW_BYTES)
            .http2_initial_connection_window_size(WINDOW_BYTES)
            .http2_max_frame_size(FRAME_BYTES)
            .pool_idle_timeout(None)
            .connect_timeout(timedelta(seconds=5))
        )
        self.address = address
        self.patience = patience
        self._is_encrypted = is_encrypted
        self._tickets = None if is_encrypted or identity is None else Tickets(identity, address.peer_id)
        self._url = f"{'https' if is_encrypted else 'http'}://{name}:{address.port}"
        self._client = (_with_tls(builder, identity, authority_pem) if is_encrypted else builder).build()

    @classmethod
    async def open(
        cls,
        address: Address,
        identity: PeerIdentity,
        patience: Patience = USUAL,
        *,
        is_encrypted: bool = True,
    ) -> "Http2Client":
        """A client that takes no other machine for this one. Raises Unreachable where the name is not known."""
        ip = await resolve(address)
        return cls(address, ip, identity, identity.authority_pem, patience, is_encrypted=is_encrypted)

    async def post(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of the answer. Raises Unreachable."""
        sending = self._client.post(self._url + path).headers(self._headers())
        request = sending.body_bytes(body).timeout(timedelta(seconds=timeout_s)).build()
        try:
            response = await request.send()
            return response.status, bytes(await response.bytes())
        except PyreqwestError as error:
            raise Unreachable(self._reason(error)) from None

    async def stream(self, path: str) -> AsyncIterator[memoryview]:
        """What comes down a stream, piece by piece, until it ends. Raises Unreachable or TurnedAway."""
        try:
            getting = self._client.get(self._url + path).headers(self._headers())
            request = getting.streamed_read_buffer_limit(0).build_streamed()
            async with request as response:
                if response.status != 200:
                    reason = bytes(await response.bytes()).decode(errors="replace")
                    raise TurnedAway(reason) if response.status == PUT_OUT else Unreachable(reason)
                while (piece := await response.body_reader.read_chunk()) is not None:
                    yield memoryview(piece)
        except PyreqwestError as error:
            raise Unreachable(self._reason(error)) from None

    async def close(self) -> None:
        await self._client.close()
        del self._client
        gc.collect()
        await asyncio.sleep(_SETTLE_S)

    def _headers(self) -> dict[str, str]:
        return {} if self._tickets is None else {TICKET_HEADER: self._tickets.current(datetime.now(UTC))}

    def _reason(self, error: PyreqwestError) -> str:
        details = error.args[1] if len(error.args) > 1 else {}
        causes = [cause["message"] for cause in details.get("causes") or ()]
        reason = causes[-1] if causes else str(error.args[0] if error.args else type(error).__name__)
        return f"{self.address.peer_id} at {self.address.host}:{self.address.port} cannot be reached: {reason}"


def _with_tls(builder: ClientBuilder, identity: PeerIdentity | None, authority_pem: bytes | None) -> ClientBuilder:
    """Trusts that authority alone, or anybody where that is None."""
    if authority_pem is None:
        builder = builder.danger_accept_invalid_certs(True)
    else:
        builder = builder.add_root_certificate_pem(authority_pem)
    return builder if identity is None else builder.identity_pem(identity.key_pem + identity.certificate_pem)


async def resolve(address: Address) -> str:
    """The IP address of a host. Raises Unreachable."""
    try:
        ipaddress.ip_address(address.host)
        return address.host
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port)
    except OSError as error:
        raise Unreachable(f"{address.host} has no address: {error.strerror}") from None
    return str(found[0][4][0])
