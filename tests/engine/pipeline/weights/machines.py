"""Machines that give out weights over loopback, and small checkpoints to give out."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.patience import USUAL, Patience
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.transport.app import PeerApp, Post, Reply
from distllm.engine.pipeline.transport.client import Address, Http2Client
from distllm.engine.pipeline.transport.server import Http2Server
from distllm.engine.pipeline.weights.hash_store import HashStore
from distllm.engine.pipeline.weights.manifest import Manifest, decode_manifest, fingerprint_of, make_manifest
from distllm.engine.pipeline.weights.messages import MANIFEST_PATH, WEIGHTS_PATH, Span, WeightsRequest
from distllm.engine.pipeline.weights.remote import RemoteWeights
from distllm.engine.pipeline.weights.remotes import Connect
from distllm.engine.pipeline.weights.source import Holding, WeightSource
from tests.engine.pipeline.conftest import joined

MAX_BYTES = 1 << 20
Change = Callable[[list[Span], bytes], bytes]
"""Makes another answer of the right one."""


def make_tensors(**sizes: int) -> dict[str, Tensor]:
    """Tensors of random bytes, each of its own."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for name, size in sizes.items()
    }


def write_checkpoint(
    directory: Path, tensors: Mapping[str, Tensor], config: str = '{"model_type": "none"}'
) -> Path:
    """A directory with a config and one file of tensors."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(config)
    save_file(dict(tensors), directory / "model.safetensors")
    return directory


def hold(directory: Path, hashes: Path) -> Holding:
    """All of a checkpoint."""
    manifest, places = make_manifest(directory, HashStore(hashes), lambda *_: None)
    return Holding(manifest.encode(), places)


def fingerprint(holding: Holding) -> str:
    return fingerprint_of(holding.manifest)


def manifest_of(holding: Holding) -> Manifest:
    return decode_manifest(holding.manifest, fingerprint(holding))


def stage_config(fingerprint: str, begin: int, end: int) -> StageConfig:
    """Some of three layers."""
    return StageConfig(
        model="tiny",
        fingerprint=fingerprint,
        begin=begin,
        end=end,
        num_layers=3,
        dtype="float32",
        kv_cache_dtype="auto",
        quantization=None,
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=64,
    )


class WatchedSource:
    """Gives out what a holding has, tells which bytes of which tensors were asked for, and may change answers."""

    def __init__(self, holding: Holding, change: Change = lambda _, content: content) -> None:
        self.asked: Counter[str] = Counter()
        self.num_manifests = 0
        self._change = change
        self._posts = WeightSource({fingerprint(holding): holding}.get, MAX_BYTES).posts

    @property
    def posts(self) -> dict[str, Post]:
        return {MANIFEST_PATH: self._tell_manifest, WEIGHTS_PATH: self._read}

    async def _tell_manifest(self, caller: PeerId | None, body: bytes) -> Reply:
        self.num_manifests += 1
        return await self._posts[MANIFEST_PATH](caller, body)

    async def _read(self, caller: PeerId | None, body: bytes) -> Reply:
        spans = msgspec.msgpack.decode(body, type=WeightsRequest).spans
        for span in spans:
            self.asked[span.name] += span.num_bytes
        reply = await self._posts[WEIGHTS_PATH](caller, body)
        return Reply(reply.status, self._change(spans, reply.body)) if reply.status == 200 else reply


class Cluster:
    """Machines of one authority."""

    def __init__(self, authority: ClusterAuthority, directory: Path, now: datetime) -> None:
        self._authority = authority
        self._directory = directory
        self._now = now

    @contextlib.asynccontextmanager
    async def serving(
        self, posts: dict[str, Post], name: str = COORDINATOR, port: int = 0
    ) -> AsyncIterator[Address]:
        """A machine that answers posts."""
        files = self.keep_identity(name, self._directory / name)
        server = Http2Server(PeerApp(MAX_BYTES, posts, {}, {}), "127.0.0.1", port, files, admits_strangers=True)
        port = await server.start()
        try:
            yield Address(PeerId(name), "127.0.0.1", port)
        finally:
            await server.close()

    def keep_identity(self, name: str, directory: Path) -> IdentityFiles:
        return IdentityFiles.keep(self._identity(name), directory)

    def _identity(self, name: str) -> PeerIdentity:
        if name == COORDINATOR:
            return self._authority.issue_own([], self._now)
        return joined(self._authority, name, self._now)

    def connect_as(self, name: str, patience: Patience = USUAL) -> Connect:
        """Opens clients that are this peer."""
        identity = self._identity(name)

        async def connect(address: Address) -> Http2Client:
            return await Http2Client.open(address, identity, patience)

        return connect

    @contextlib.asynccontextmanager
    async def remote(
        self, address: Address, fingerprint: str, patience: Patience = USUAL
    ) -> AsyncIterator[RemoteWeights]:
        """What a machine gives out to a peer."""
        client = await self.connect_as("peer-9", patience)(address)
        try:
            yield RemoteWeights(client, fingerprint)
        finally:
            await client.close()
