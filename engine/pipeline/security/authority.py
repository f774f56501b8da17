"""The cluster's own certificate authority: whoever has a certificate of it belongs to the cluster.

It is made when its state directory is first used, and kept there as one file with its key.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from distllm.engine.durable import locked, write_private
from distllm.engine.pipeline.security.certificate import (
    fingerprint_of,
    make_authority_certificate,
    make_peer_certificate,
    new_key,
)
from distllm.engine.pipeline.security.host import general_names
from distllm.engine.pipeline.security.identity import PeerIdentity, PendingIdentity
from distllm.engine.pipeline.security.peer_id import COORDINATOR, InvalidPeerId, PeerId, parse_peer_id
from distllm.engine.pipeline.security.signing_request import read_signing_request
from distllm.engine.pipeline.security.state_dir import ClusterStateError, make_private_dir, read_private

CERTIFICATE_LIFETIME = timedelta(hours=24)

_FILE_NAME = "authority.pem"
_PEM = serialization.Encoding.PEM


class ClusterAuthority:
    """Issues certificates. Immutable; one process may hold several of the same state directory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def open(cls, state_dir: Path, now: datetime) -> Self:
        """The authority of a state directory, made if there is none. Raises ClusterStateError or OSError."""
        path = make_private_dir(state_dir) / _FILE_NAME
        with locked(state_dir):
            try:
                return cls._read(path, now)
            except FileNotFoundError:
                key = new_key()
                authority = cls(key, make_authority_certificate(key, now))
                write_private(path, authority._pem())
                return authority

    @property
    def certificate_pem(self) -> bytes:
        return self._certificate.public_bytes(_PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate in DER, in hexadecimal."""
        return fingerprint_of(self._certificate)

    def issue(
        self,
        csr_pem: bytes,
        peer_id: PeerId,
        hosts: Sequence[str],
        now: datetime,
        lifetime: timedelta = CERTIFICATE_LIFETIME,
    ) -> bytes:
        """A peer's certificate in PEM. Only the key of the request counts: the id is for the caller to know.

        Raises InvalidSigningRequest, InvalidPeerId (the coordinator's own id too) or InvalidHost.
        """
        if peer_id == COORDINATOR:
            raise InvalidPeerId(f"the id {COORDINATOR} is the coordinator's own")
        return self._issue(csr_pem, peer_id, hosts, now, lifetime)

    def issue_own(
        self, hosts: Sequence[str], now: datetime, lifetime: timedelta = CERTIFICATE_LIFETIME
    ) -> PeerIdentity:
        """The coordinator's identity, with a new key. Raises InvalidHost."""
        pending = PendingIdentity.make()
        certificate_pem = self._issue(pending.csr_pem, COORDINATOR, hosts, now, lifetime)
        return pending.accept(certificate_pem, self.certificate_pem, now)

    def _issue(
        self, csr_pem: bytes, peer_id: PeerId, hosts: Sequence[str], now: datetime, lifetime: timedelta
    ) -> bytes:
        if lifetime <= timedelta(0):
            raise ValueError(f"a certificate's lifetime must be above 0, not {lifetime}")
        certificate = make_peer_certificate(
            read_signing_request(csr_pem),
            parse_peer_id(peer_id),
            general_names(hosts),
            min(now + lifetime, self._certificate.not_valid_after_utc),
            now,
            (self._key, self._certificate),
        )
        return certificate.public_bytes(_PEM)

    @classmethod
    def _read(cls, path: Path, now: datetime) -> Self:
        content = read_private(path)
        try:
            key = serialization.load_pem_private_key(content, password=None)
            certificate = x509.load_pem_x509_certificate(content)
            certificate.verify_directly_issued_by(certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise _unusable(path, "is damaged") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise _unusable(path, "holds a key and a certificate that do not belong together")
        if now >= certificate.not_valid_after_utc:
            raise _unusable(path, f"expired at {certificate.not_valid_after_utc:%F %T} UTC")
        return cls(key, certificate)

    def _pem(self) -> bytes:
        """Key, then certificate."""
        key_pem = self._key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return key_pem + self.certificate_pem


def _unusable(path: Path, fault: str) -> ClusterStateError:
    return ClusterStateError(
        f"the cluster's authority {path} {fault}: restore it from a copy, or remove it to begin a new cluster, "
        "which every peer must then join with a new token"
    )
