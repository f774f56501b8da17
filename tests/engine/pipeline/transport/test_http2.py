"""Callers are who their certificates say, messages stay within their limit, and a stream ends with its reader."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.security.ticket import TicketCheck
from distllm.engine.pipeline.transport.app import Outbound, PeerApp, Reply, ticketed_caller
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable
from distllm.engine.pipeline.transport.server import Http2Server
from tests.engine.pipeline.conftest import joined

SERVER = PeerId("server-1")
TIMEOUT_S = 20.0
MAX_BYTES = 1 << 20


async def name_caller(caller: PeerId | None, body: bytes) -> Reply:
    return Reply(200, f"{caller} sent {len(body)} bytes".encode())


async def fail(_: PeerId | None, __: bytes) -> Reply:
    raise RuntimeError("out of luck")


class Served:
    """A server with two posts, an open one and a stream, and what it saw."""

    def __init__(self) -> None:
        self.outbound: Outbound = asyncio.Queue()
        self.ended: asyncio.Queue[PeerId] = asyncio.Queue()
        self.app = PeerApp(
            MAX_BYTES,
            posts={"/closed": name_caller, "/fail": fail},
            open_posts={"/open": name_caller},
            streams={"/stream": lambda _: self.outbound},
            on_stream_end=lambda caller, _: self.ended.put_nowait(caller),
        )

    @contextlib.asynccontextmanager
    async def running(
        self, identity: PeerIdentity, directory: Path, *, admits_strangers: bool = True
    ) -> AsyncIterator[Address]:
        files = IdentityFiles.keep(identity, directory)
        server = Http2Server(self.app, "127.0.0.1", 0, files, admits_strangers=admits_strangers)
        port = await server.start()
        try:
            yield Address(SERVER, "127.0.0.1", port)
        finally:
            await server.close()


@pytest.fixture
async def served() -> Served:
    return Served()


@contextlib.asynccontextmanager
async def connected(
    address: Address, identity: PeerIdentity | None, authority: ClusterAuthority | None
) -> AsyncIterator[Http2Client]:
    client = Http2Client(address, address.host, identity, authority.certificate_pem if authority else None)
    try:
        yield client
    finally:
        await client.close()


async def test_a_peer_is_known_by_its_certificate(
    served: Served, authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    async with (
        served.running(joined(authority, SERVER, now), tmp_path / "server") as address,
        connected(address, joined(authority, "peer-1", now), authority) as client,
    ):
        assert await client.post("/closed", b"x" * 70_000, TIMEOUT_S) == (200, b"peer-1 sent 70000 bytes")
        assert (await client.post("/nowhere", b"", TIMEOUT_S))[0] == 404
        status, reason = await client.post("/closed", b"x" * (MAX_BYTES + 1), TIMEOUT_S)
        assert (status, b"max_message_size_mb" in reason) == (413, True)
        status, reason = await client.post("/fail", b"", TIMEOUT_S)
        assert (status, reason) == (500, b"RuntimeError: out of luck")
        assert (await client.post("/closed", b"", TIMEOUT_S))[0] == 200


async def test_a_stranger_may_do_no_more_than_join(
    served: Served, authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    async with (
        served.running(joined(authority, SERVER, now), tmp_path / "server") as address,
        connected(address, None, authority) as client,
    ):
        assert await client.post("/open", b"", TIMEOUT_S) == (200, b"None sent 0 bytes")
        status, reason = await client.post("/closed", b"", TIMEOUT_S)
        assert (status, b"join it with a token" in reason) == (403, True)
        assert (await client.post("/stream", b"", TIMEOUT_S))[0] == 403


async def test_a_certificate_of_another_cluster_is_none(
    served: Served, authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    other = ClusterAuthority.open(tmp_path / "other", now)
    async with served.running(joined(authority, SERVER, now), tmp_path / "server") as address:
        async with connected(address, joined(other, "peer-1", now), authority) as client:
            with contextlib.suppress(Unreachable):  # turned away at once, or taken for a stranger
                assert (await client.post("/closed", b"", TIMEOUT_S))[0] == 403
        async with connected(address, joined(authority, "peer-1", now), other) as client:
            with pytest.raises(Unreachable, match="cannot be reached"):
                await client.post("/closed", b"", TIMEOUT_S)


async def test_no_other_machine_is_taken_for_the_one_that_was_meant(
    served: Served, authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    async with served.running(joined(authority, SERVER, now), tmp_path / "server") as address:
        elsewhere = replace(address, peer_id=PeerId("server-2"))
        async with connected(elsewhere, joined(authority, "peer-1", now), authority) as client:
            with pytest.raises(Unreachable, match="server-2 at 127"):
                await client.post("/closed", b"", TIMEOUT_S)


async def test_a_server_without_strangers_wants_a_certificate(
    served: Served, authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    own = joined(authority, SERVER, now)
    async with served.running(own, tmp_path / "server", admits_strangers=False) as address:
        async with connected(address, None, authority) as client:
            with pytest.raises(Unreachable):
                await client.post("/open", b"", TIMEOUT_S)
        async with connected(address, joined(authority, "peer-1", now), authority) as client:
            assert (await client.post("/open", b"", TIMEOUT_S))[0] == 200


async def test_what_is_put_into_a_stream_comes_out_and_its_end_is_seen_on_both_sides(
    served: Served, authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    async with (
        served.running(joined(authority, SERVER, now), tmp_path / "server") as address,
        connected(address, joined(authority, "peer-1", now), authority) as client,
    ):
        served.outbound.put_nowait(b"one")
        received = b""
        async for piece in client.stream("/stream"):
            received += piece
            if received == b"one":
                served.outbound.put_nowait(b"x" * 3_000_000)
            if len(received) == 3_000_003:
                served.outbound.put_nowait(None)
        assert received == b"one" + b"x" * 3_000_000
        assert await asyncio.wait_for(served.ended.get(), TIMEOUT_S) == "peer-1"

        served.outbound.put_nowait(b"two")
        async for _ in client.stream("/stream"):
            break  # the reader leaves
    assert await asyncio.wait_for(served.ended.get(), TIMEOUT_S) == "peer-1"


async def test_who_was_put_out_is_refused_everywhere(
    served: Served, authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    served.app = replace(served.app, is_removed=lambda caller: caller == "peer-1")
    async with served.running(joined(authority, SERVER, now), tmp_path / "server") as address:
        async with connected(address, joined(authority, "peer-1", now), authority) as client:
            for path in ("/closed", "/open", "/stream"):
                status, reason = await client.post(path, b"", TIMEOUT_S)
                assert (status, reason) == (410, b"peer-1 was put out of the cluster: join it with a new token")
        async with connected(address, joined(authority, "peer-2", now), authority) as client:
            assert (await client.post("/closed", b"", TIMEOUT_S))[0] == 200


async def test_without_tls_a_peer_is_known_by_its_ticket(
    served: Served, authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    identify = ticketed_caller(TicketCheck(authority.certificate_pem, SERVER))
    server = Http2Server(replace(served.app, identify=identify), "127.0.0.1", 0, None)
    address = Address(SERVER, "127.0.0.1", await server.start())
    other = ClusterAuthority.open(tmp_path / "other", now)
    callers = [joined(authority, "peer-1", now), None, joined(other, "peer-1", now)]
    clients = [Http2Client(address, address.host, caller, None, is_encrypted=False) for caller in callers]
    try:
        assert await clients[0].post("/closed", b"x" * 70_000, TIMEOUT_S) == (200, b"peer-1 sent 70000 bytes")
        served.outbound.put_nowait(b"one")
        served.outbound.put_nowait(None)
        assert b"".join([bytes(piece) async for piece in clients[0].stream("/stream")]) == b"one"
        assert await clients[1].post("/open", b"", TIMEOUT_S) == (200, b"None sent 0 bytes")
        assert (await clients[1].post("/closed", b"", TIMEOUT_S))[0] == 403
        for path in ("/closed", "/open"):
            status, reason = await clients[2].post(path, b"", TIMEOUT_S)
            assert (status, reason) == (403, b"the ticket is none of this cluster for this machine")
    finally:
        for client in clients:
            await client.close()
        await server.close()


async def test_nobody_at_a_port_is_said_in_one_line(authority: ClusterAuthority, now: datetime) -> None:
    async with connected(Address(SERVER, "127.0.0.1", 9), joined(authority, "p", now), authority) as client:
        with pytest.raises(Unreachable, match=r"^server-1 at 127.0.0.1:9 cannot be reached: .*refused"):
            await client.post("/open", b"", TIMEOUT_S)
    with pytest.raises(Unreachable, match="has no address"):
        await Http2Client.open(Address(SERVER, "no-such-host.invalid", 9), joined(authority, "p", now))
