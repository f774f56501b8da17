"""Links are timed over the cluster's own HTTP/2, and a probe gets no more than it may."""

import contextlib
import struct
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from distllm.engine.pipeline.measuring.link_timing import PROBE_PATH, LinkTimer, answer_probe
from distllm.engine.pipeline.placement.measurements import PeerId
from distllm.engine.pipeline.security import peer_id as certified
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.transport.app import PeerApp, Post
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable
from distllm.engine.pipeline.transport.server import Http2Server
from tests.engine.pipeline.conftest import joined

A, B = PeerId("a-1"), PeerId("b-1")
MAX_BYTES = 8 << 20


@contextlib.asynccontextmanager
async def connected(
    authority: ClusterAuthority, tmp_path: Path, now: datetime, posts: dict[str, Post]
) -> AsyncIterator[Http2Client]:
    files = IdentityFiles.keep(joined(authority, B, now, ["127.0.0.1"]), tmp_path / B)
    server = Http2Server(PeerApp(MAX_BYTES, posts, {}, {}), "127.0.0.1", 0, files)
    port = await server.start()
    client = await Http2Client.open(
        Address(certified.PeerId(B), "127.0.0.1", port), joined(authority, A, now, ["127.0.0.1"])
    )
    try:
        yield client
    finally:
        await client.close()
        await server.close()


async def test_both_directions_of_a_link_are_timed(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    async with connected(authority, tmp_path, now, {PROBE_PATH: answer_probe(MAX_BYTES)}) as client:
        timer = LinkTimer(client, A, B)
        sending, receiving = await timer.time_sending(), await timer.time_receiving()
    assert [(link.source, link.target) for link in (sending, receiving)] == [(A, B), (B, A)]
    for link in (sending, receiving):
        assert 0 < link.delay_s < 1
        assert link.bytes_per_s > 1e6


async def test_who_answers_no_probes_is_unreachable(
    authority: ClusterAuthority, tmp_path: Path, now: datetime
) -> None:
    async with connected(authority, tmp_path, now, {}) as client:
        with pytest.raises(Unreachable, match="b-1 refuses probes: there is no /v1/probe"):
            await LinkTimer(client, A, B).time_sending()


@pytest.mark.parametrize(
    ("body", "status", "num_bytes"),
    [
        (struct.pack(">I", 5), 200, 5),
        (struct.pack(">I", 0) + bytes(1000), 200, 0),
        (struct.pack(">I", 1000), 200, 1000),
        (struct.pack(">I", 1001), 413, None),
        (struct.pack(">I", 2**32 - 1), 413, None),
        (b"", 400, None),
        (b"abc", 400, None),
    ],
)
async def test_a_probe_gets_what_it_asks_for_within_the_limit(
    body: bytes, status: int, num_bytes: int | None
) -> None:
    reply = await answer_probe(1000)(None, body)
    assert reply.status == status
    if num_bytes is not None:
        assert len(reply.body) == num_bytes
