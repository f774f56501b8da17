"""A machine joins and renews its certificate, with TLS and without; where the two ends differ both say so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distllm.engine.pipeline.coordinator.desk import Desk
from distllm.engine.pipeline.coordinator.events import EventLog
from distllm.engine.pipeline.coordinator.listeners import Listeners
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.reception import Reception
from distllm.engine.pipeline.peer.joining import join, renew
from distllm.engine.pipeline.peer.mismatch import find_mismatch
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.encryption import read_encryption, write_encryption
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.join_token import JoinRefused
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.engine.pipeline.security.state_dir import ClusterStateError
from distllm.engine.pipeline.security.token_store import TokenStore
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.pipeline.transport.app import Reply
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable

HERE = "127.0.0.1"
TIMEOUT_S = 20.0
both = pytest.mark.parametrize("is_encrypted", [True, False], ids=["with TLS", "in plaintext"])


async def name_caller(caller: PeerId | None, _: bytes) -> Reply:
    return Reply(200, str(caller).encode())


class Coordinator:
    """That encrypts or not; its address while it is `open`."""

    def __init__(self, authority: ClusterAuthority, state_dir: Path, *, is_encrypted: bool) -> None:
        self.tokens = TokenStore(state_dir, authority.fingerprint)
        self._state_dir, self._is_encrypted = state_dir, is_encrypted
        settings = ClusterSettings(host=HERE, port=0, state_dir=str(state_dir), is_encrypted=is_encrypted)
        reception = Reception(
            authority,
            self.tokens,
            Members(),
            settings,
            Listeners(result=ignore, loading=ignore, measured=ignore, received=ignore, has_edge=lambda *_: False),
            EventLog(),
            RemovedPeers(state_dir),
        )
        app = reception.app({"/who": name_caller})
        self._desk = Desk(app, HERE, 0, authority, state_dir / "own", is_encrypted=is_encrypted)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Address]:
        write_encryption(self._state_dir, is_encrypted=self._is_encrypted)
        port = await self._desk.open()
        try:
            yield Address(COORDINATOR, HERE, port)
        finally:
            await self._desk.close()

    def make_token(self) -> str:
        return self.tokens.make(timedelta(hours=1), datetime.now(UTC))


def ignore(*_: object) -> None:
    """What nothing is done with."""


def machine(authority: ClusterAuthority, tmp_path: Path, *, is_encrypted: bool) -> Coordinator:
    return Coordinator(authority, tmp_path / "cluster", is_encrypted=is_encrypted)


@both
async def test_a_machine_joins_and_renews(
    authority: ClusterAuthority, tmp_path: Path, *, is_encrypted: bool
) -> None:
    coordinator, directory = machine(authority, tmp_path, is_encrypted=is_encrypted), tmp_path / "peer"
    async with coordinator.open() as address:
        identity = await join(address, coordinator.make_token(), "gpu-1", [HERE], directory)
        assert read_encryption(directory) is is_encrypted
        client = await Http2Client.open(address, identity, is_encrypted=is_encrypted)
        try:
            assert await client.post("/who", b"", TIMEOUT_S) == (200, identity.peer_id.encode())
            renewed = await renew(client, identity, [HERE], directory)
        finally:
            await client.close()
    assert renewed.peer_id == identity.peer_id
    assert renewed.certificate != identity.certificate
    assert IdentityFiles.current(directory).read().certificate == renewed.certificate


@both
async def test_a_token_of_the_other_kind_is_refused_with_a_reason_on_both_sides(
    authority: ClusterAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_encrypted: bool
) -> None:
    coordinator = machine(authority, tmp_path, is_encrypted=is_encrypted)
    write_encryption(tmp_path / "cluster", is_encrypted=not is_encrypted)
    token = coordinator.make_token()  # before its cluster.yaml was changed
    setting = str(is_encrypted).lower()
    async with coordinator.open() as address:
        with pytest.raises(JoinRefused, match=f"network.encryption is {setting}, .*: join again, with a token"):
            await join(address, token, "gpu-1", [HERE], tmp_path / "peer")
        assert ("that does not encrypt" if is_encrypted else "that encrypts") in caplog.text
        await join(address, coordinator.make_token(), "gpu-1", [HERE], tmp_path / "peer")


@both
async def test_who_is_not_there_is_no_mismatch(*, is_encrypted: bool) -> None:
    nobody = Address(COORDINATOR, HERE, 9)
    assert await find_mismatch(nobody, is_encrypted=is_encrypted) is None
    unknown = Address(COORDINATOR, "no-such-host.invalid", 9)
    assert await find_mismatch(unknown, is_encrypted=is_encrypted) is None


@both
async def test_a_machine_that_has_joined_the_other_kind_reaches_nobody(
    authority: ClusterAuthority, tmp_path: Path, *, is_encrypted: bool
) -> None:
    coordinator = machine(authority, tmp_path, is_encrypted=is_encrypted)
    async with coordinator.open() as address:
        identity = await join(address, coordinator.make_token(), "gpu-1", [HERE], tmp_path / "peer")
        client = await Http2Client.open(address, identity, is_encrypted=not is_encrypted)
        try:
            with pytest.raises(Unreachable):
                await client.post("/who", b"", TIMEOUT_S)
        finally:
            await client.close()
        assert "speaks" in str(await find_mismatch(address, is_encrypted=not is_encrypted))


def test_a_damaged_memory_of_the_encryption_is_named(tmp_path: Path) -> None:
    (tmp_path / "network.json").write_text("{}")
    with pytest.raises(ClusterStateError, match=r"network\.json cannot be read: .*; remove it"):
        read_encryption(tmp_path)
    assert read_encryption(tmp_path / "nowhere") is True
