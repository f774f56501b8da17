"""The two kinds of X.509 certificates of a cluster: its authority's and a peer's, both with P-256 keys.

Knows nothing of where they are kept and who may have one.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from distllm.engine.pipeline.security.peer_id import PeerId, peer_uri, server_name

CLOCK_SKEW = timedelta(minutes=5)
"""How far clocks may be apart: certificates are valid from so long before they are made."""

_AUTHORITY_LIFETIME = timedelta(days=3650)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def make_authority_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Signed by itself; it may sign peers' certificates and no other authority's."""
    public_key = key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "distllm cluster")])
    return (
        _builder(name, public_key, now, now + _AUTHORITY_LIFETIME)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def make_peer_certificate(
    public_key: ec.EllipticCurvePublicKey,
    peer_id: PeerId,
    hosts: Sequence[x509.GeneralName],
    expires_at: datetime,
    now: datetime,
    authority: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
) -> x509.Certificate:
    """For both ends of TLS. Its names are the peer's URI, its server name, and `hosts`."""
    authority_key, authority_certificate = authority
    names = [x509.UniformResourceIdentifier(peer_uri(peer_id)), x509.DNSName(server_name(peer_id)), *hosts]
    issuer_id = authority_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer_id)]), public_key, now, expires_at)
        .issuer_name(authority_certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate in DER, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _builder(
    subject: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime, expires_at: datetime
) -> x509.CertificateBuilder:
    """What both kinds have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(expires_at)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    """An authority's key signs certificates and nothing else, a peer's handshakes and nothing else."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
