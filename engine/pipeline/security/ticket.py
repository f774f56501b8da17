"""A ticket: what a caller sends with every call to say who it is, where there is no TLS that would.

    base64url of DER certificate . milliseconds since 1970 . base64url of a signature of audience and time

The certificate's key signs it, for one audience and for a few minutes. Whoever sees a ticket can use it for as
long, and can change what goes with it: it keeps out who cannot listen, and nobody else.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from distllm.engine.pipeline.security.certificate import CLOCK_SKEW
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.security.peer_id import InvalidPeerId, PeerId, certified_id

LIFETIME = timedelta(minutes=2)
"""Apart from how far clocks may be apart."""
_RENEWED_AFTER = timedelta(minutes=1)
_MAX_KNOWN = 1024
_PATTERN = re.compile(r"([A-Za-z0-9_=-]{1,4000})\.([0-9]{1,13})\.([A-Za-z0-9_=-]{1,200})")
_ALGORITHM = ec.ECDSA(hashes.SHA256())


class TicketRefused(ValueError):
    """A caller is not who it says, or not now; the message says why."""


class Tickets:
    """Makes tickets of one identity for one audience."""

    def __init__(self, identity: PeerIdentity, audience: PeerId) -> None:
        self._identity = identity
        self._audience = audience
        self._latest: tuple[datetime, str] | None = None

    def current(self, now: datetime) -> str:
        """One that lasts for another minute at least."""
        if self._latest is None or not timedelta(0) <= now - self._latest[0] < _RENEWED_AFTER:
            self._latest = now, self._make(now)
        return self._latest[1]

    def _make(self, now: datetime) -> str:
        made_ms = str(int(now.timestamp() * 1000))
        certificate = self._identity.certificate.public_bytes(serialization.Encoding.DER)
        signature = self._identity.key.sign(_signed(self._audience, made_ms), _ALGORITHM)
        return f"{_encode(certificate)}.{made_ms}.{_encode(signature)}"


@dataclass(frozen=True, slots=True)
class _Known:
    caller: PeerId
    valid_from: datetime
    valid_to: datetime


class TicketCheck:
    """Knows callers of one cluster by the tickets that they have for `audience`."""

    def __init__(self, authority_pem: bytes, audience: PeerId) -> None:
        self._authority = x509.load_pem_x509_certificate(authority_pem)
        self._audience = audience
        self._known: dict[str, _Known] = {}  # that were verified: the same one comes with many calls

    def caller(self, text: str, now: datetime) -> PeerId:
        """Raises TicketRefused."""
        known = self._known.get(text)
        if known is None:
            known = self._verified(text)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[text] = known
        if not known.valid_from <= now <= known.valid_to:
            raise TicketRefused(
                f"the ticket is valid from {known.valid_from:%F %T} to {known.valid_to:%F %T} UTC, and here it is "
                f"{now:%F %T}: set both machines' clocks"
            )
        return known.caller

    def _verified(self, text: str) -> _Known:
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise TicketRefused("this is no ticket of a peer")
        try:
            certificate = x509.load_der_x509_certificate(_decode(match[1]))
            certificate.verify_directly_issued_by(self._authority)
            key = certificate.public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey), "the authority signs no others"
            key.verify(_decode(match[3]), _signed(self._audience, match[2]), _ALGORITHM)
            caller = certified_id(certificate)
        except (ValueError, TypeError, InvalidSignature, InvalidPeerId, binascii.Error):
            raise TicketRefused("the ticket is none of this cluster for this machine") from None
        made_at = datetime.fromtimestamp(int(match[2]) / 1000, UTC)
        return _Known(
            caller,
            max(made_at - CLOCK_SKEW, certificate.not_valid_before_utc),
            min(made_at + LIFETIME + CLOCK_SKEW, certificate.not_valid_after_utc),
        )


def _signed(audience: PeerId, made_ms: str) -> bytes:
    return f"distllm ticket for {audience} at {made_ms}".encode()


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text, altchars=b"-_", validate=True)
