"""An identity is whole or refused, on disk as in memory, and is renewed before it expires."""

import stat
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import InvalidIdentity, PeerIdentity, PendingIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles, NoIdentity
from distllm.engine.pipeline.security.peer_id import InvalidPeerId, PeerId, peer_id_of
from distllm.engine.pipeline.security.state_dir import ClusterStateError
from tests.engine.pipeline.conftest import joined


def test_a_peer_joins_and_knows_who_it_is_and_until_when(authority: ClusterAuthority, now: datetime) -> None:
    identity = joined(authority, "peer-1", now)
    assert identity.peer_id == "peer-1"
    assert identity.expires_at == now + timedelta(hours=24)
    assert identity.authority_pem == authority.certificate_pem


def test_renewal_is_due_after_two_thirds_of_the_life(authority: ClusterAuthority, now: datetime) -> None:
    identity = joined(authority, "peer-1", now, lifetime=timedelta(minutes=25))  # of 30, with those before now
    assert not identity.needs_renewal(now + timedelta(minutes=14, seconds=59))
    assert identity.needs_renewal(now + timedelta(minutes=15))


def test_renewal_gives_the_same_peer_another_key(authority: ClusterAuthority, now: datetime) -> None:
    before, after = (joined(authority, "peer-1", now) for _ in range(2))
    assert after.peer_id == before.peer_id
    assert after.key_pem != before.key_pem


def test_an_answer_to_another_request_is_refused(authority: ClusterAuthority, now: datetime) -> None:
    other = joined(authority, "peer-1", now)
    with pytest.raises(InvalidIdentity, match="of another key"):
        PendingIdentity.make().accept(other.certificate_pem, authority.certificate_pem, now)


def test_an_answer_of_another_authority_is_refused(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    other = ClusterAuthority.open(tmp_path / "other", now)
    pending = PendingIdentity.make()
    certificate_pem = other.issue(pending.csr_pem, PeerId("peer-1"), (), now)
    with pytest.raises(InvalidIdentity, match="none of this cluster's authority"):
        pending.accept(certificate_pem, authority.certificate_pem, now)


def test_an_answer_that_is_no_certificate_is_refused(authority: ClusterAuthority, now: datetime) -> None:
    with pytest.raises(InvalidIdentity, match="not in PEM, or damaged"):
        PendingIdentity.make().accept(b"junk", authority.certificate_pem, now)


@pytest.mark.parametrize("hours", [-1, 24, 30])
def test_a_clock_that_is_wrong_is_said(authority: ClusterAuthority, now: datetime, hours: int) -> None:
    pending = PendingIdentity.make()
    certificate_pem = authority.issue(pending.csr_pem, PeerId("peer-1"), (), now)
    with pytest.raises(InvalidIdentity, match="set this machine's clock and the coordinator's"):
        pending.accept(certificate_pem, authority.certificate_pem, now + timedelta(hours=hours))


def test_what_is_kept_is_read_back(authority: ClusterAuthority, tmp_path: Path, now: datetime) -> None:
    identity = joined(authority, "peer-1", now)
    kept = IdentityFiles.keep(identity, tmp_path / "peer")
    assert IdentityFiles.current(tmp_path / "peer") == kept
    read = kept.read()
    assert (read.key_pem, read.certificate_pem, read.authority_pem) == (
        identity.key_pem,
        identity.certificate_pem,
        identity.authority_pem,
    )
    assert kept.key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


def test_what_is_kept_is_for_its_owner_alone(authority: ClusterAuthority, tmp_path: Path, now: datetime) -> None:
    kept = IdentityFiles.keep(joined(authority, "peer-1", now), tmp_path / "peer")
    for directory in (tmp_path / "peer", kept.key.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in kept.key.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_set_replaces_the_old_and_leaves_it_readable_once(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    identities = [joined(authority, "peer-1", now) for _ in range(4)]
    sets = [IdentityFiles.keep(identity, tmp_path) for identity in identities]
    assert IdentityFiles.current(tmp_path).read().key_pem == identities[3].key_pem
    assert sets[2].read().key_pem == identities[2].key_pem
    assert sorted(path.name for path in tmp_path.glob("set-*")) == sorted(s.key.parent.name for s in sets[2:])


def test_a_writer_that_dies_halfway_leaves_the_old_set_and_is_swept(
    authority: ClusterAuthority, tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = joined(authority, "peer-1", now), joined(authority, "peer-1", now)
    IdentityFiles.keep(before, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PeerIdentity, "certificate_pem", property(lambda _: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            IdentityFiles.keep(after, tmp_path)
    assert IdentityFiles.current(tmp_path).read().key_pem == before.key_pem
    IdentityFiles.keep(after, tmp_path)
    assert IdentityFiles.current(tmp_path).read().key_pem == after.key_pem
    assert len(list(tmp_path.glob("set-*"))) == 2


def test_a_machine_that_has_not_joined_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(NoIdentity, match="make a token on the coordinator with `distllm token`"):
        IdentityFiles.current(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda files: files.key.unlink(), "a file is missing"),
        (lambda files: files.key.write_bytes(b""), "the key is not in PEM, or damaged"),
        (lambda files: files.certificate.write_bytes(b"x"), "a certificate is not in PEM"),
        (lambda files: files.key.chmod(0o644), "chmod 600"),
    ],
)
def test_damaged_files_are_refused_with_the_remedy(
    authority: ClusterAuthority,
    tmp_path: Path,
    now: datetime,
    damage: Callable[[IdentityFiles], object],
    words: str,
) -> None:
    kept = IdentityFiles.keep(joined(authority, "peer-1", now), tmp_path)
    damage(kept)
    with pytest.raises(ClusterStateError, match=words):
        kept.read()


def certificate_with(names: list[x509.GeneralName], now: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peer-1")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(hours=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("uris", "words"),
    [
        ([], "no usable list of names"),
        (["https://peer/peer-1"], "has 0 names"),
        (["distllm://peer/a", "distllm://peer/b"], "has 2 names"),
        (["distllm://peer/A"], "'A' is no peer id"),
        (["distllm://peer/"], "'' is no peer id"),
    ],
)
def test_a_certificate_that_names_no_one_peer_is_refused(now: datetime, uris: list[str], words: str) -> None:
    with pytest.raises(InvalidPeerId, match=words):
        peer_id_of(certificate_with([x509.UniformResourceIdentifier(uri) for uri in uris], now))


@pytest.mark.parametrize("junk", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\n", "-----BEGIN"])
def test_what_is_no_certificate_names_nobody(junk: bytes | str) -> None:
    with pytest.raises(InvalidPeerId, match="this is no certificate"):
        peer_id_of(junk)
