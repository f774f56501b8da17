"""The authority certifies keys under names that it chooses itself, and keeps its own key to itself."""

import ipaddress
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.host import MAX_HOSTS, InvalidHost
from distllm.engine.pipeline.security.identity import PendingIdentity
from distllm.engine.pipeline.security.peer_id import COORDINATOR, InvalidPeerId, PeerId, peer_id_of
from distllm.engine.pipeline.security.signing_request import InvalidSigningRequest, make_signing_request
from distllm.engine.pipeline.security.state_dir import ClusterStateError

PEER = PeerId("peer-1")


def issued(
    authority: ClusterAuthority, now: datetime, *hosts: str, csr_pem: bytes | None = None
) -> x509.Certificate:
    csr_pem = csr_pem or PendingIdentity.make().csr_pem
    return x509.load_pem_x509_certificate(authority.issue(csr_pem, PEER, hosts, now))


def names_in(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_an_authority_is_made_once_and_found_again(tmp_path: Path, now: datetime) -> None:
    made = ClusterAuthority.open(tmp_path / "a", now)
    found = ClusterAuthority.open(tmp_path / "a", now + timedelta(days=1000))
    assert found.certificate_pem == made.certificate_pem
    assert found.fingerprint == made.fingerprint
    assert len(bytes.fromhex(made.fingerprint)) == 32
    assert ClusterAuthority.open(tmp_path / "b", now).fingerprint != made.fingerprint


def test_processes_that_begin_a_cluster_at_once_get_one_authority(tmp_path: Path, now: datetime) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: ClusterAuthority.open(tmp_path / "a", now), range(16)))
    assert len({authority.fingerprint for authority in opened}) == 1


def test_the_key_is_for_its_owner_alone_and_nothing_else_is_left(tmp_path: Path, now: datetime) -> None:
    ClusterAuthority.open(tmp_path / "a", now)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    (file,) = (tmp_path / "a").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in file.read_bytes()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_key(path: Path) -> None:
    path.write_bytes(path.read_bytes().partition(b"-----BEGIN CERT")[2])


def with_another_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate = b"-----BEGIN CERT" + path.read_bytes().partition(b"-----BEGIN CERT")[2]
    path.write_bytes(pem + certificate)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short, "is damaged"),
        (without_key, "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (with_another_key, "do not belong together"),
        (lambda path: path.chmod(0o604), "chmod 600"),
        (lambda path: path.parent.chmod(0o707), "chmod 700"),
    ],
)
def test_a_damaged_or_public_authority_is_refused_by_name_and_not_replaced(
    tmp_path: Path, now: datetime, damage: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "authority.pem"
    ClusterAuthority.open(tmp_path, now)
    damage(path)
    left = path.read_bytes()
    with pytest.raises(ClusterStateError, match=words) as caught:
        ClusterAuthority.open(tmp_path, now)
    assert str(tmp_path) in str(caught.value)
    assert path.read_bytes() == left


def test_an_authority_that_has_expired_is_refused(tmp_path: Path, now: datetime) -> None:
    ClusterAuthority.open(tmp_path, now)
    with pytest.raises(ClusterStateError, match=r"expired at .* begin a new cluster"):
        ClusterAuthority.open(tmp_path, now + timedelta(days=3650))


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterStateError, match="file/state cannot be made"):
        ClusterAuthority.open(tmp_path / "file" / "state", now)


def test_a_certificate_names_the_peer_and_its_hosts(authority: ClusterAuthority, now: datetime) -> None:
    certificate = issued(authority, now, "10.0.0.7", "Box.example.", "fe80::1%eth0", "10.0.0.7")
    names = names_in(certificate)
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["distllm://peer/peer-1"]
    assert names.get_values_for_type(x509.DNSName) == ["peer-1.distllm", "box.example"]
    addresses = names.get_values_for_type(x509.IPAddress)
    assert addresses == [ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("fe80::1")]
    assert peer_id_of(certificate.public_bytes(serialization.Encoding.DER)) == PEER
    assert peer_id_of(certificate.public_bytes(serialization.Encoding.PEM).decode()) == PEER


def test_a_certificate_is_for_both_ends_for_a_day_and_for_no_other_use(
    authority: ClusterAuthority, now: datetime
) -> None:
    certificate = issued(authority, now)
    assert certificate.not_valid_before_utc == now - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == now + timedelta(hours=24)
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_no_certificate_outlives_its_authority(authority: ClusterAuthority, now: datetime) -> None:
    pem = authority.issue(PendingIdentity.make().csr_pem, PEER, (), now, timedelta(days=10_000))
    end = x509.load_pem_x509_certificate(authority.certificate_pem).not_valid_after_utc
    assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == end


def test_what_a_request_says_beside_its_key_is_ignored(authority: ClusterAuthority, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("coordinator.distllm")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate = issued(authority, now, csr_pem=greedy.public_bytes(serialization.Encoding.PEM))
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "CN=peer-1"
    assert names_in(certificate).get_values_for_type(x509.DNSName) == ["peer-1.distllm"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def csr_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def forged() -> bytes:
    """A request that names a key which its sender does not have."""
    theirs, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def der(key: ec.EllipticCurvePrivateKey) -> bytes:
        return x509.load_pem_x509_csr(make_signing_request(key)).public_bytes(serialization.Encoding.DER)

    def point(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )

    swapped = x509.load_der_x509_csr(der(own).replace(point(own), point(theirs)))
    return swapped.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: csr_of(rsa.generate_private_key(65537, 2048)), "another kind of key than P-256"),
        (lambda: csr_of(ed25519.Ed25519PrivateKey.generate()), "another kind of key than P-256"),
        (lambda: csr_of(ec.generate_private_key(ec.SECP384R1())), "another kind of key than P-256"),
        (forged, "not signed with the key that it names"),
        (lambda: b"", "no certificate signing request"),
        (
            lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "no certificate",
        ),
        (lambda: b"x" * 20_000, "at most 16384 bytes"),
    ],
)
def test_a_request_that_proves_nothing_is_refused(
    authority: ClusterAuthority, now: datetime, make: Callable[[], bytes], words: str
) -> None:
    with pytest.raises(InvalidSigningRequest, match=words):
        authority.issue(make(), PEER, (), now)


@pytest.mark.parametrize("name", ["", "Peer", "a.b", "-a", "a-", "a" * 64, "a\n", "é", "coordinator"])
def test_a_name_that_is_no_peers_is_refused(authority: ClusterAuthority, now: datetime, name: str) -> None:
    with pytest.raises(InvalidPeerId):
        authority.issue(PendingIdentity.make().csr_pem, PeerId(name), (), now)


@pytest.mark.parametrize(
    "host",
    ["", "*.example", "a b", "x.distllm", "coordinator.distllm.", "X.DISTLLM", "a" * 64, "a..b", "a\n", "ü.de"],
)
def test_a_host_that_is_none_or_the_clusters_own_name_is_refused(
    authority: ClusterAuthority, now: datetime, host: str
) -> None:
    with pytest.raises(InvalidHost):
        issued(authority, now, host)


def test_a_machine_may_be_called_distllm(authority: ClusterAuthority, now: datetime) -> None:
    assert names_in(issued(authority, now, "distllm")).get_values_for_type(x509.DNSName)[1] == "distllm"


def test_hosts_are_not_without_number(authority: ClusterAuthority, now: datetime) -> None:
    hosts = [f"10.0.0.{number}" for number in range(MAX_HOSTS + 1)]
    assert len(list(names_in(issued(authority, now, *hosts[1:])))) == MAX_HOSTS + 2
    with pytest.raises(InvalidHost, match="17 hosts are too many"):
        issued(authority, now, *hosts)


def test_the_coordinator_has_an_identity_of_its_own(authority: ClusterAuthority, now: datetime) -> None:
    own = authority.issue_own(["10.0.0.1"], now)
    assert own.peer_id == COORDINATOR
    assert own.authority_pem == authority.certificate_pem
    assert own.expires_at == now + timedelta(hours=24)


def test_a_lifetime_is_above_zero(authority: ClusterAuthority) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        authority.issue_own([], datetime.now(UTC), timedelta(0))
