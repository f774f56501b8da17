"""A process that fetches all of a checkpoint: IDENTITY_DIRECTORY PORT CACHE FINGERPRINT. Tests kill it."""

import asyncio
import sys
from pathlib import Path

from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.peer_id import COORDINATOR
from distllm.engine.pipeline.transport.client import Address, Http2Client
from distllm.engine.pipeline.weights.fetch import WeightFetch
from distllm.engine.pipeline.weights.manifest import decode_manifest
from distllm.engine.pipeline.weights.remote import RemoteWeights
from distllm.engine.pipeline.weights.remotes import Remotes
from distllm.engine.pipeline.weights.weight_cache import WeightCache


async def fetch(identity: str, port: str, directory: str, fingerprint: str) -> None:
    cache = WeightCache(Path(directory))
    manifest = decode_manifest(cache.manifest(fingerprint) or b"", fingerprint)
    address = Address(COORDINATOR, "127.0.0.1", int(port))
    client = await Http2Client.open(address, IdentityFiles.current(Path(identity)).read())
    remotes = Remotes(RemoteWeights(client, fingerprint))
    await WeightFetch(remotes, cache, fingerprint, lambda _: None, shard_bytes=100_000).fetch(manifest.tensors)


if __name__ == "__main__":
    asyncio.run(fetch(*sys.argv[1:]))
