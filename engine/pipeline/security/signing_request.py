"""A certificate signing request (PKCS #10): a public key, and proof that whoever sends it has the private one.

What else it says is ignored: names and rights are the authority's to give.
"""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_MAX_BYTES = 16 * 1024


class InvalidSigningRequest(ValueError):
    """No certificate can be issued for this; the message says why."""


def make_signing_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """In PEM, of a P-256 key."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def read_signing_request(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key that is to be certified, a P-256 key. Raises InvalidSigningRequest."""
    if len(csr_pem) > _MAX_BYTES:
        raise InvalidSigningRequest(f"a signing request has at most {_MAX_BYTES} bytes, not {len(csr_pem)}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise InvalidSigningRequest("this is no certificate signing request in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidSigningRequest("the signing request has another kind of key than P-256")
    if not is_signed:
        raise InvalidSigningRequest("the signing request is not signed with the key that it names")
    return key
