"""The coordinator is reached under the same port before and after its certificate was renewed."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from distllm.engine.pipeline.coordinator.desk import Desk
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.transport.app import PeerApp, Reply
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable
from tests.engine.pipeline.conftest import joined
from tests.engine.pipeline.waiting import TIMEOUT_S, until

LIFETIME = timedelta(seconds=152)
"""Two thirds of it, which begins five minutes ago, are over in a second and a half."""


async def answer(caller: PeerId | None, _: bytes) -> Reply:
    return Reply(200, str(caller).encode())


async def ask(client: Http2Client) -> bytes:
    """The answer, as soon as there is one: callers try again."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with suppress(Unreachable):
                return (await client.post("/who", b"", TIMEOUT_S))[1]
            await asyncio.sleep(0.1)


async def test_its_certificate_is_renewed_at_the_same_port(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    app = PeerApp(1000, posts={"/who": answer}, open_posts={}, streams={})
    desk = Desk(app, "127.0.0.1", 0, authority, tmp_path / "desk", LIFETIME, check_s=0.1)
    port = await desk.open()
    first = IdentityFiles.current(tmp_path / "desk").read()
    renewing = asyncio.create_task(desk.keep_certificate())
    client = await Http2Client.open(Address(COORDINATOR, "127.0.0.1", port), joined(authority, "peer-1", now))
    try:
        assert await ask(client) == b"peer-1"
        await until(lambda: IdentityFiles.current(tmp_path / "desk").read().expires_at > first.expires_at)
        assert await ask(client) == b"peer-1"
    finally:
        renewing.cancel()
        await client.close()
        await desk.close()
