"""How a machine becomes a peer: it trusts the authority that its token names, and gets a certificate from it."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from distllm.engine.pipeline.peer.mismatch import find_mismatch
from distllm.engine.pipeline.security.encryption import write_encryption
from distllm.engine.pipeline.security.identity import PeerIdentity, PendingIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.join_token import JoinRefused, JoinToken
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable, resolve


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a certificate. `hosts` are the addresses under which others reach this machine."""

    token: str
    csr_pem: bytes
    name: str
    hosts: list[str]


class JoinAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The certificate."""

    certificate_pem: bytes


async def join(coordinator: Address, token_text: str, name: str, hosts: list[str], directory: Path) -> PeerIdentity:
    """Join, and keep the identity in `directory`. Raises JoinRefused, Unreachable, InvalidIdentity or OSError."""
    token = JoinToken.parse(token_text)
    ip = await resolve(coordinator)
    encrypted = token.is_encrypted
    stranger = Http2Client(coordinator, ip, None, None, is_encrypted=encrypted)  # trusts nobody, and says nothing
    try:
        _, authority_pem = await stranger.post("/v1/authority", b"", stranger.patience.timeout_s)
    except Unreachable:
        if (reason := await find_mismatch(coordinator, is_encrypted=encrypted)) is not None:
            raise JoinRefused(reason) from None
        raise
    finally:
        await stranger.close()
    token.check_authority(authority_pem)
    pending = PendingIdentity.make()
    request = JoinRequest(token=token_text, csr_pem=pending.csr_pem, name=name, hosts=hosts)
    client = Http2Client(coordinator, ip, None, authority_pem, is_encrypted=encrypted)
    try:
        answer = await _ask(client, "/v1/join", request)
    finally:
        await client.close()
    identity = pending.accept(answer.certificate_pem, authority_pem, datetime.now(UTC))
    write_encryption(directory, is_encrypted=encrypted)
    IdentityFiles.keep(identity, directory)
    return identity


async def renew(client: Http2Client, identity: PeerIdentity, hosts: list[str], directory: Path) -> PeerIdentity:
    """A new certificate for the same peer. Raises as `join` does."""
    pending = PendingIdentity.make()
    request = JoinRequest(token="", csr_pem=pending.csr_pem, name=identity.peer_id, hosts=hosts)
    answer = await _ask(client, "/v1/renew", request)
    renewed = pending.accept(answer.certificate_pem, identity.authority_pem, datetime.now(UTC))
    IdentityFiles.keep(renewed, directory)
    return renewed


async def _ask(client: Http2Client, path: str, request: JoinRequest) -> JoinAnswer:
    status, answer = await client.post(path, msgspec.msgpack.encode(request), client.patience.timeout_s)
    if status != 200:
        raise JoinRefused(answer.decode(errors="replace"))
    return msgspec.msgpack.decode(answer, type=JoinAnswer)
