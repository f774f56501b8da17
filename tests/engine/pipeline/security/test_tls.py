"""Handshakes over loopback: members of one cluster reach each other by name, nobody else gets a byte through."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import PeerIdentity, PendingIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.peer_id import PeerId, peer_id_of, server_name
from tests.engine.pipeline.conftest import joined

TIMEOUT_S = 10.0
SERVER = PeerId("server-1")


def context(side: int, trusted_pem: bytes, identity: PeerIdentity | None, directory: Path) -> ssl.SSLContext:
    """Of one end, which shows `identity`, if any, and asks the other for one that `trusted_pem` signed."""
    made = ssl.SSLContext(side)
    made.load_verify_locations(cadata=trusted_pem.decode())
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    if identity is not None:
        files = IdentityFiles.keep(identity, directory)
        made.load_cert_chain(files.certificate, files.key)
    return made


def serve_one(listener: socket.socket, server: ssl.SSLContext) -> str:
    """Echo one byte and say who sent it."""
    raw, _ = listener.accept()
    raw.settimeout(TIMEOUT_S)
    with server.wrap_socket(raw, server_side=True) as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        connection.sendall(connection.recv(1))
        return peer_id_of(certificate)


@contextlib.contextmanager
def serving(server: ssl.SSLContext) -> Iterator[tuple[int, Future[str]]]:
    """A port, and what its one connection comes to."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(TIMEOUT_S)
        yield listener.getsockname()[1], pool.submit(serve_one, listener, server)


def echo(client: ssl.SSLContext, port: int, name: str) -> bytes:
    """The byte that comes back: TLS 1.3 tells a refused client only when it reads."""
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as raw,
        client.wrap_socket(raw, server_hostname=name) as connection,
    ):
        connection.sendall(b"x")
        return connection.recv(1)


@pytest.fixture
def server(authority: ClusterAuthority, tmp_path: Path, now: datetime) -> ssl.SSLContext:
    identity = joined(authority, SERVER, now, ["127.0.0.1"])
    return context(ssl.PROTOCOL_TLS_SERVER, authority.certificate_pem, identity, tmp_path / "server")


def client_of(authority: ClusterAuthority, identity: PeerIdentity | None, directory: Path) -> ssl.SSLContext:
    return context(ssl.PROTOCOL_TLS_CLIENT, authority.certificate_pem, identity, directory)


@pytest.mark.parametrize("name", [server_name(SERVER), "127.0.0.1"])
def test_a_member_is_let_in_and_known_by_its_id(
    authority: ClusterAuthority, server: ssl.SSLContext, tmp_path: Path, now: datetime, name: str
) -> None:
    client = client_of(authority, joined(authority, "peer-1", now), tmp_path / "peer")
    with serving(server) as (port, connection):
        assert echo(client, port, name) == b"x"
        assert connection.result(TIMEOUT_S) == "peer-1"


def test_the_coordinator_is_a_member_too(
    authority: ClusterAuthority, server: ssl.SSLContext, tmp_path: Path, now: datetime
) -> None:
    client = client_of(authority, authority.issue_own([], now), tmp_path / "coordinator")
    with serving(server) as (port, connection):
        assert echo(client, port, server_name(SERVER)) == b"x"
        assert connection.result(TIMEOUT_S) == "coordinator"


def test_a_peer_cannot_pass_for_another(
    authority: ClusterAuthority, server: ssl.SSLContext, tmp_path: Path, now: datetime
) -> None:
    client = client_of(authority, joined(authority, "peer-1", now), tmp_path / "peer")
    with serving(server) as (port, connection):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'server-2\.distllm'"):
            echo(client, port, "server-2.distllm")
        with pytest.raises((ssl.SSLError, OSError)):
            connection.result(TIMEOUT_S)


def test_a_client_without_a_certificate_is_refused(
    authority: ClusterAuthority, server: ssl.SSLContext, tmp_path: Path
) -> None:
    with serving(server) as (port, connection):
        with pytest.raises((ssl.SSLError, OSError)):
            echo(client_of(authority, None, tmp_path), port, server_name(SERVER))
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            connection.result(TIMEOUT_S)


def test_a_client_of_another_cluster_is_refused(
    authority: ClusterAuthority, server: ssl.SSLContext, tmp_path: Path, now: datetime
) -> None:
    other = ClusterAuthority.open(tmp_path / "other", now)
    client = client_of(authority, joined(other, "peer-1", now), tmp_path / "peer")
    with serving(server) as (port, connection):
        with pytest.raises((ssl.SSLError, OSError)):
            echo(client, port, server_name(SERVER))
        with pytest.raises(ssl.SSLCertVerificationError):
            connection.result(TIMEOUT_S)


def test_a_server_of_another_cluster_is_refused(
    authority: ClusterAuthority, server: ssl.SSLContext, tmp_path: Path, now: datetime
) -> None:
    other = ClusterAuthority.open(tmp_path / "other", now)
    client = client_of(other, joined(other, "peer-1", now), tmp_path / "peer")
    with serving(server) as (port, connection):
        with pytest.raises(ssl.SSLCertVerificationError):
            echo(client, port, server_name(SERVER))
        with pytest.raises((ssl.SSLError, OSError)):
            connection.result(TIMEOUT_S)


def test_a_client_whose_certificate_has_expired_is_refused(
    authority: ClusterAuthority, server: ssl.SSLContext, tmp_path: Path, now: datetime
) -> None:
    past = now - timedelta(hours=25)
    client = client_of(authority, joined(authority, "peer-1", past), tmp_path / "peer")
    with serving(server) as (port, connection):
        with pytest.raises((ssl.SSLError, OSError)):
            echo(client, port, server_name(SERVER))
        with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
            connection.result(TIMEOUT_S)


def test_a_member_cannot_certify_others(
    authority: ClusterAuthority, server: ssl.SSLContext, tmp_path: Path, now: datetime
) -> None:
    member = joined(authority, "peer-1", now)
    forger = ClusterAuthority(member.key, member.certificate)
    pending = PendingIdentity.make()
    forged_pem = forger.issue(pending.csr_pem, PeerId("peer-2"), (), now)
    forged = pending.accept(forged_pem, member.certificate_pem, now)
    files = IdentityFiles.keep(forged, tmp_path / "forged")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(forged_pem + member.certificate_pem)
    client = client_of(authority, None, tmp_path)
    client.load_cert_chain(chain, files.key)
    with serving(server) as (port, connection):
        with pytest.raises((ssl.SSLError, OSError)):
            echo(client, port, server_name(SERVER))
        with pytest.raises(ssl.SSLCertVerificationError):
            connection.result(TIMEOUT_S)
