"""A cluster to join, and identities in it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distllm.engine.pipeline.security.authority import CERTIFICATE_LIFETIME, ClusterAuthority
from distllm.engine.pipeline.security.identity import PeerIdentity, PendingIdentity
from distllm.engine.pipeline.security.peer_id import PeerId


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def authority(tmp_path: Path, now: datetime) -> ClusterAuthority:
    return ClusterAuthority.open(tmp_path / "cluster", now)


def joined(
    authority: ClusterAuthority,
    name: str,
    now: datetime,
    hosts: Sequence[str] = (),
    lifetime: timedelta = CERTIFICATE_LIFETIME,
) -> PeerIdentity:
    """A peer that has asked for a certificate and got it."""
    pending = PendingIdentity.make()
    certificate_pem = authority.issue(pending.csr_pem, PeerId(name), hosts, now, lifetime)
    return pending.accept(certificate_pem, authority.certificate_pem, now)
