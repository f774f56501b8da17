"""A peer's id, and how a certificate says it: as the URI distllm://peer/ID and the name ID.distllm.

The name is what TLS verifies: whoever connects to peer ID asks for ID.distllm, whatever the address.
"""

import re
from functools import lru_cache
from typing import NewType

from cryptography import x509

PeerId = NewType("PeerId", str)
"""A label of a host name: at most 63 of a-z, 0-9 and hyphens, none of these at an end."""

COORDINATOR = PeerId("coordinator")
"""The id of the one that issues certificates; no peer gets it."""

DOMAIN = "distllm"
_URI_BEGIN = "distllm://peer/"
_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PEM_BEGIN = b"-----BEGIN"


class InvalidPeerId(ValueError):
    """A text is no peer id, or a certificate says none."""


def parse_peer_id(text: str) -> PeerId:
    """Raises InvalidPeerId."""
    if not _PATTERN.fullmatch(text):
        raise InvalidPeerId(
            f"{text[:80]!r} is no peer id: it must be at most 63 of a-z, 0-9 and hyphens, none of these at an end"
        )
    return PeerId(text)


def server_name(peer_id: PeerId) -> str:
    """The name to verify when connecting to a peer."""
    return f"{peer_id}.{DOMAIN}"


def peer_uri(peer_id: PeerId) -> str:
    return _URI_BEGIN + peer_id


@lru_cache(maxsize=256)
def peer_id_of(certificate: bytes | str) -> PeerId:
    """The id in a certificate, in DER or PEM, whose signature somebody else has verified. Raises InvalidPeerId.

    Remembered, as every call of a peer brings its certificate and reading one takes 0.2 ms.
    """
    encoded = certificate.encode() if isinstance(certificate, str) else certificate
    try:
        is_pem = encoded.lstrip().startswith(_PEM_BEGIN)
        parsed = x509.load_pem_x509_certificate(encoded) if is_pem else x509.load_der_x509_certificate(encoded)
    except ValueError:
        raise InvalidPeerId("this is no certificate") from None
    return certified_id(parsed)


def certified_id(certificate: x509.Certificate) -> PeerId:
    """As peer_id_of, of a certificate that is parsed already. Raises InvalidPeerId."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise InvalidPeerId("the certificate has no usable list of names") from None
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(_URI_BEGIN)]
    if len(uris) != 1:
        raise InvalidPeerId(f"the certificate has {len(uris)} names of the form {_URI_BEGIN}ID instead of one")
    return parse_peer_id(uris[0].removeprefix(_URI_BEGIN))
