"""Who a peer is: its private key, the certificate that the cluster's authority issued for it, and that authority's.

Made in two steps: a PendingIdentity has a key and asks for a certificate, with the answer it is a PeerIdentity.
Knows nothing of files.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from distllm.engine.pipeline.security.certificate import new_key
from distllm.engine.pipeline.security.peer_id import PeerId, certified_id
from distllm.engine.pipeline.security.signing_request import make_signing_request

_RENEWED_AFTER = 2 / 3
_PEM = serialization.Encoding.PEM


class InvalidIdentity(ValueError):
    """Key, certificate and authority do not belong together, or the certificate is not valid now."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Key and certificate belong together, and the authority signed the certificate. Raises InvalidIdentity."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    authority: x509.Certificate

    def __post_init__(self) -> None:
        if self.certificate.public_key() != self.key.public_key():
            raise InvalidIdentity("the certificate is of another key")
        try:
            self.certificate.verify_directly_issued_by(self.authority)
            certified_id(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            raise InvalidIdentity("the certificate is none of this cluster's authority for a peer") from None

    @classmethod
    def from_pem(cls, key_pem: bytes, certificate_pem: bytes, authority_pem: bytes) -> Self:
        """Raises InvalidIdentity."""
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InvalidIdentity("the key is not in PEM, or damaged") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidIdentity("the key is none of an elliptic curve")
        return cls(key, _certificate(certificate_pem), _certificate(authority_pem))

    @property
    def peer_id(self) -> PeerId:
        return certified_id(self.certificate)

    @property
    def expires_at(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def needs_renewal(self, now: datetime) -> bool:
        """Whether two thirds of the certificate's life have passed."""
        begins_at = self.certificate.not_valid_before_utc
        return now >= begins_at + (self.expires_at - begins_at) * _RENEWED_AFTER

    @property
    def key_pem(self) -> bytes:
        """PKCS #8, not encrypted."""
        return self.key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(_PEM)

    @property
    def authority_pem(self) -> bytes:
        """The one certificate to trust."""
        return self.authority.public_bytes(_PEM)


@dataclass(frozen=True, slots=True)
class PendingIdentity:
    """A key that has no certificate yet, to join with or to renew."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls) -> Self:
        return cls(new_key())

    @property
    def csr_pem(self) -> bytes:
        """What the authority is asked to sign."""
        return make_signing_request(self.key)

    def accept(self, certificate_pem: bytes, authority_pem: bytes, now: datetime) -> PeerIdentity:
        """The answer, by an authority that the caller trusts. Raises InvalidIdentity."""
        identity = PeerIdentity(self.key, _certificate(certificate_pem), _certificate(authority_pem))
        begins_at = identity.certificate.not_valid_before_utc
        if not begins_at <= now < identity.expires_at:
            raise InvalidIdentity(
                f"the certificate is valid from {begins_at:%F %T} to {identity.expires_at:%F %T} UTC, and here it "
                f"is {now:%F %T}: set this machine's clock and the coordinator's"
            )
        return identity


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise InvalidIdentity("a certificate is not in PEM, or damaged") from None
