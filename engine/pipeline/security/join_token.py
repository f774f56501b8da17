"""A join token: lets one peer join one cluster, and tells the peer which cluster that is.

    dl1_, or dl1p_ where connections are plaintext
    + base64url of: secret (20 bytes) | SHA-256 of the authority (32) | expiry, Unix seconds (4) | CRC-32 (4)

The joiner trusts an authority only if its fingerprint is the token's, and sends the token to nobody else. The
checksum tells a mistyped token from a wrong one.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import struct
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from cryptography import x509

from distllm.engine.pipeline.security.certificate import fingerprint_of

VERSION = 1

_SECRET_BYTES = 20
_FINGERPRINT_BYTES = 32
_CONTENT = struct.Struct(f">{_SECRET_BYTES}s{_FINGERPRINT_BYTES}sI")
_CHECKSUM = struct.Struct(">I")
_TEXT = re.compile(r"dl([0-9]{1,3})(p?)_([A-Za-z0-9_-]+)")
_AGAIN = "make another with `distllm token` on the coordinator"


class JoinRefused(Exception):
    """A token does not let its bearer in; the message is for the user who gave it."""


class MistypedToken(JoinRefused):
    """The text is no token, or not all of one."""

    def __init__(self) -> None:
        super().__init__(
            "this is not a whole join token, a character may be missing or mistyped: copy it again from "
            "`distllm token`"
        )


class OtherTokenVersion(JoinRefused):
    """The token is of another version of distllm."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"this join token is of version {version} and this distllm knows version {VERSION}: install the same "
            "distllm on the coordinator and on its peers"
        )


class OtherCluster(JoinRefused):
    """The token and the authority are not of the same cluster."""

    def __init__(self) -> None:
        super().__init__(
            "this join token is of another cluster: give the address of the coordinator that made it, or make one "
            "with `distllm token` on this coordinator, with the same --state as its `distllm serve`"
        )


class UnknownToken(JoinRefused):
    """The token is of this cluster, and there is no record of it."""

    def __init__(self) -> None:
        super().__init__(f"the coordinator has no record of this join token: {_AGAIN}")


class UsedToken(JoinRefused):
    """A peer has joined with the token."""

    def __init__(self, used_at: datetime) -> None:
        super().__init__(
            f"this join token was used at {used_at:%F %T} UTC, and each lets one peer join: {_AGAIN}; if you do "
            "not know who used it, look at the list of peers, and put that one out with `distllm cluster remove`"
        )


class ExpiredToken(JoinRefused):
    """The token's time is over."""

    def __init__(self, expires_at: datetime) -> None:
        super().__init__(
            f"this join token expired at {expires_at:%F %T} UTC: {_AGAIN}; --lifetime sets for how long"
        )


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a token's text says. `fingerprint` is of the authority, in hexadecimal.

    `is_encrypted` tells the peer whether to speak TLS; it gives no right and is not part of the digest.
    """

    secret: bytes = field(repr=False)
    fingerprint: str
    expires_at: datetime
    is_encrypted: bool = True

    @classmethod
    def make(cls, fingerprint: str, expires_at: datetime, *, is_encrypted: bool = True) -> Self:
        """With a new secret. The expiry is cut to whole seconds."""
        return cls(secrets.token_bytes(_SECRET_BYTES), fingerprint, expires_at.replace(microsecond=0), is_encrypted)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Space around the token does not matter. Raises MistypedToken or OtherTokenVersion."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise MistypedToken
        if int(match[1]) != VERSION:
            raise OtherTokenVersion(int(match[1]))
        try:
            content = base64.b64decode(match[3], altchars=b"-_", validate=True)
        except binascii.Error:
            raise MistypedToken from None
        body, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
        if len(body) != _CONTENT.size or checksum != _checksum(body):
            raise MistypedToken
        secret, fingerprint, expiry_s = _CONTENT.unpack(body)
        return cls(secret, fingerprint.hex(), datetime.fromtimestamp(expiry_s, UTC), is_encrypted=not match[2])

    @property
    def text(self) -> str:
        body = self._body()
        kind = "" if self.is_encrypted else "p"
        return f"dl{VERSION}{kind}_{base64.urlsafe_b64encode(body + _checksum(body)).decode()}"

    @property
    def digest(self) -> str:
        """SHA-256 of all that the token says: enough to know it again, too little to join with."""
        return hashlib.sha256(self._body()).hexdigest()

    def check_authority(self, authority_pem: bytes) -> None:
        """Raises OtherCluster where this is not the certificate of the token's authority."""
        try:
            fingerprint = fingerprint_of(x509.load_pem_x509_certificate(authority_pem))
        except ValueError:
            raise OtherCluster from None
        if not hmac.compare_digest(fingerprint, self.fingerprint):
            raise OtherCluster

    def _body(self) -> bytes:
        return _CONTENT.pack(self.secret, bytes.fromhex(self.fingerprint), int(self.expires_at.timestamp()))


def _checksum(body: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(body))
