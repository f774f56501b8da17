"""The libraries that carry the stages' traffic, both on rustls, take our certificates and refuse others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from h2corn import Config, Receive, Scope, Send, Server
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import ConnectError

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.peer_id import PeerId, peer_id_of, server_name
from tests.engine.pipeline.conftest import joined

SERVER = PeerId("server-1")


async def name_caller(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI app that answers with the id of the caller's certificate."""
    assert scope["type"] == "http"
    caller = peer_id_of(scope["extensions"]["tls"]["client_cert_chain"][0])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": caller.encode()})


@contextlib.asynccontextmanager
async def serving(identity: PeerIdentity, directory: Path) -> AsyncIterator[int]:
    """The port of a server that wants certificates of the authority of `identity`."""
    files = IdentityFiles.keep(identity, directory)
    config = Config(
        bind=("127.0.0.1:0",),
        certfile=files.certificate,
        keyfile=files.key,
        ca_certs=files.authority,
        cert_reqs="required",
        lifespan="off",
    )
    server = Server(name_caller, config)
    running = asyncio.create_task(server.serve())
    try:
        await server.wait_started()
        yield int(server.addresses[0].rpartition(":")[2])
    finally:
        server.shutdown()
        await running


async def ask(port: int, trusted: ClusterAuthority, identity: PeerIdentity | None, name: str) -> str:
    """What the server that goes by `name` calls us. Raises ConnectError."""
    builder = ClientBuilder().http2_prior_knowledge().resolve(name, "127.0.0.1", port)
    builder = builder.timeout(timedelta(seconds=10)).add_root_certificate_pem(trusted.certificate_pem)
    if identity is not None:
        builder = builder.identity_pem(identity.key_pem + identity.certificate_pem)
    async with builder.build() as client:
        response = await client.get(f"https://{name}:{port}/").build().send()
        return await response.text()


async def test_a_member_is_let_in_and_everyone_else_kept_out(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    other = ClusterAuthority.open(tmp_path / "other", now)
    member = joined(authority, "peer-1", now)
    past = now - timedelta(hours=25)
    strangers = (None, joined(other, "peer-1", now), joined(authority, "peer-1", past))
    async with serving(joined(authority, SERVER, now), tmp_path / "server") as port:
        assert await ask(port, authority, member, server_name(SERVER)) == "peer-1"
        for stranger in strangers:
            with pytest.raises(ConnectError):
                await ask(port, authority, stranger, server_name(SERVER))
        with pytest.raises(ConnectError):
            await ask(port, authority, member, "server-2.distllm")
        with pytest.raises(ConnectError):
            await ask(port, other, member, server_name(SERVER))
        assert await ask(port, authority, member, server_name(SERVER)) == "peer-1"
