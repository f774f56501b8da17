"""`distllm token`: makes a join token and prints it with the command that uses it."""

import ipaddress
import re
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.state_dir import ClusterStateError, default_cluster_dir
from distllm.engine.pipeline.security.token_store import TokenStore
from distllm.server.config import InvalidSettings
from distllm.server.coordinator_address import CoordinatorAddress

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LIFETIME = re.compile(r"([0-9]{1,8})([smhd])")
_LONGEST_LIFETIME = timedelta(days=30)
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_ALL_ADDRESSES = ("0.0.0.0", "::", "")
_DISTANT = ("192.0.2.1", 9)  # reserved for documentation; nothing is sent there


def print_join_token(state_dir: Path | None, lifetime: str, coordinator: str | None) -> int:
    """Print it. Returns the exit status. Raises InvalidSettings for a flag that is wrong, or OSError.

    `state_dir` None is the default one. `coordinator` None is where the coordinator of that directory listens, or
    listened last.
    """
    valid_for = _parse_lifetime(lifetime)
    now = datetime.now(UTC)
    try:
        directory = default_cluster_dir() if state_dir is None else state_dir.expanduser()
        listening = CoordinatorAddress.read(directory)
        address = _reachable(listening) if coordinator is None else _parse_address(coordinator, listening.port)
        fingerprint = ClusterAuthority.open(directory, now).fingerprint
        token = TokenStore(directory, fingerprint).make(valid_for, now)
    except ClusterStateError as error:
        sys.stderr.write(f"distllm: {error}\n")
        return 1
    sys.stdout.write(
        f"{token}\n\nUntil {now + valid_for:%F %T} UTC it lets one machine join, which runs:\n\n"
        f"  distllm peer --join {address} --token {token}\n"
    )
    return 0


def _parse_lifetime(text: str) -> timedelta:
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise InvalidSettings(f"--lifetime must be a number with s, m, h or d, such as 15m or 1h, not {text!r}")
    lifetime = timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])
    if not timedelta(0) < lifetime <= _LONGEST_LIFETIME:
        raise InvalidSettings(f"--lifetime must be above 0 and at most {_LONGEST_LIFETIME.days}d, not {text}")
    return lifetime


def _parse_address(text: str, default_port: int) -> str:
    """The address with its port."""
    if _is_ipv6(text):
        return _with_port(text, default_port)
    match = _ADDRESS.fullmatch(text)
    if match is None or not (match["port"] is None or 0 < int(match["port"]) < 65536):
        raise InvalidSettings(
            f"--coordinator must be HOST:PORT, such as 10.0.0.5:5555 or [fd00::5]:5555, not {text!r}"
        )
    return text if match["port"] else _with_port(match["host"], default_port)


def _reachable(listening: CoordinatorAddress) -> str:
    """Under which other machines find it."""
    host = _own_host() if listening.host in _ALL_ADDRESSES else listening.host
    return _with_port(host, listening.port)


def _own_host() -> str:
    """That from which this machine reaches others, or its name where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_DISTANT)
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if _is_ipv6(host) else f"{host}:{port}"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
