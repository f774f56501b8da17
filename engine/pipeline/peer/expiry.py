"""What becomes of a peer whose certificate has expired: TLS refuses it, and its coordinator hears nothing of it."""

import contextlib
from datetime import datetime

from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable, resolve

EXPIRED_PATH = "/v1/expired"
_TIMEOUT_S = 5.0


async def explain_expiry(
    coordinator: Address, identity: PeerIdentity, now: datetime, *, is_encrypted: bool
) -> str | None:
    """Why this peer is refused, which its coordinator is told too; None while its certificate is valid."""
    if now < identity.expires_at:
        return None
    with contextlib.suppress(Unreachable):
        ip = await resolve(coordinator)
        stranger = Http2Client(coordinator, ip, None, identity.authority_pem, is_encrypted=is_encrypted)
        try:
            await stranger.post(EXPIRED_PATH, identity.peer_id.encode(), _TIMEOUT_S)
        finally:
            await stranger.close()
    return f"its certificate expired at {identity.expires_at:%F %T} UTC: join again, with a new token"
