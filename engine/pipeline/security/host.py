"""The addresses and names under which a peer is reached, as its certificate lists them."""

import ipaddress
import re
from collections.abc import Sequence

from cryptography import x509

from distllm.engine.pipeline.security.peer_id import DOMAIN

MAX_HOSTS = 16
_MAX_NAME_LENGTH = 253
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")


class InvalidHost(ValueError):
    """A host cannot stand in a certificate; the message names it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def general_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Each host once, as an IP address or a DNS name. Raises InvalidHost.

    Names under `.distllm` are refused: they say who a peer is, which is not for the peer to choose.
    """
    if len(hosts) > MAX_HOSTS:
        raise InvalidHost(f"{len(hosts)} hosts are too many for one certificate, which holds {MAX_HOSTS}")
    return list(dict.fromkeys(_general_name(host) for host in hosts))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.partition("%")[0]))  # without the interface's name
    except ValueError:
        name = host.lower().rstrip(".")
    if len(name) > _MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise InvalidHost(f"{host[:80]!r} is neither an IP address nor a host name")
    if name.endswith(f".{DOMAIN}"):
        raise InvalidHost(f"{host[:80]!r} is a name of the cluster's own; a host must not end in .{DOMAIN}")
    return x509.DNSName(name)
