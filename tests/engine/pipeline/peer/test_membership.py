"""A member knows others by what the cluster says, and finds out why it is none any more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from distllm.engine.pipeline.messages import Removed, Welcome
from distllm.engine.pipeline.patience import USUAL, Patience
from distllm.engine.pipeline.peer.membership import Membership
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.encryption import write_encryption
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.join_token import JoinRefused
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.transport.app import Reply
from distllm.engine.pipeline.transport.client import Address, Unreachable
from tests.engine.pipeline.conftest import joined

HERE = "127.0.0.1"
NOBODY = Address(COORDINATOR, HERE, 9)
TIMEOUT_S = 20.0
both = pytest.mark.parametrize("is_encrypted", [True, False], ids=["with TLS", "in plaintext"])


class Cluster:
    """Makes members, which find no coordinator."""

    def __init__(self, authority: ClusterAuthority, directory: Path, now: datetime, *, is_encrypted: bool) -> None:
        self._authority, self._directory, self._now = authority, directory, now
        self._is_encrypted = is_encrypted

    def member(self, name: str, age: timedelta = timedelta()) -> Membership:
        directory = self._directory / name
        write_encryption(directory, is_encrypted=self._is_encrypted)
        IdentityFiles.keep(joined(self._authority, name, self._now - age), directory)
        return Membership(NOBODY, directory)


@asynccontextmanager
async def serving(member: Membership) -> AsyncIterator[Address]:
    """It answers who calls."""

    async def name_caller(caller: PeerId | None, _: bytes) -> Reply:
        return Reply(200, str(caller).encode())

    server = member.server(1 << 20, {"/who": name_caller}, (HERE, 0))
    try:
        yield Address(member.peer_id, HERE, await server.start())
    finally:
        await server.close()


@both
async def test_members_answer_each_other_until_one_is_removed(
    authority: ClusterAuthority, tmp_path: Path, now: datetime, *, is_encrypted: bool
) -> None:
    cluster = Cluster(authority, tmp_path, now, is_encrypted=is_encrypted)
    ann, bob = cluster.member("ann-1"), cluster.member("bob-1")
    async with serving(ann) as address:
        client = await bob.connect(address)
        try:
            assert await client.post("/who", b"", TIMEOUT_S) == (200, b"bob-1")
            ann.take(Removed(peer_ids=frozenset({"bob-1"})))
            status, _ = await client.post("/who", b"", TIMEOUT_S)
            assert status == 410
            ann.take(Welcome(version=1, beat_s=1.0))
            assert await client.post("/who", b"", TIMEOUT_S) == (200, b"bob-1")
        finally:
            await client.close()


async def test_calls_have_the_patience_of_the_latest_welcome(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    cluster = Cluster(authority, tmp_path, now, is_encrypted=True)
    ann, bob = cluster.member("ann-1"), cluster.member("bob-1")
    assert ann.patience == USUAL
    patience = Patience(timeout_s=7.0, retry_attempts=1)
    ann.take(Welcome(version=1, beat_s=1.0, patience=patience))
    ann.take(Removed(peer_ids=frozenset()))
    async with serving(bob) as address:
        client = await ann.connect(address)
        assert client.patience == patience
        await client.close()


async def test_who_has_expired_is_told_to_join_again(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    cluster = Cluster(authority, tmp_path, now, is_encrypted=True)
    assert await cluster.member("ann-1").explain_unreachable() is None
    old = cluster.member("old-1", age=timedelta(days=2))
    assert old.needs_renewal
    with pytest.raises(JoinRefused, match=r"its certificate expired at .*: join again, with a new token"):
        await old.explain_unreachable()


async def test_without_encryption_nothing_is_sent_to_another_machine(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    """192.0.2.0/24 is nobody's."""
    ann = Cluster(authority, tmp_path, now, is_encrypted=False).member("ann-1")
    with pytest.raises(Unreachable, match=r"bob-1 says that it is at 192\.0\.2\.1, on another machine"):
        await ann.connect(Address(PeerId("bob-1"), "192.0.2.1", 9))
