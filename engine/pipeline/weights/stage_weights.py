"""Where a peer's stages are loaded from: its own copy of the model, or what it has fetched for them."""

import asyncio
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from distllm.engine.byte_size import byte_size
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.stage_model.plan import find_held
from distllm.engine.pipeline.transport.client import Address
from distllm.engine.pipeline.weights.byte_progress import ByteProgress
from distllm.engine.pipeline.weights.cache_limit import CacheLimit
from distllm.engine.pipeline.weights.fetch import WeightFetch
from distllm.engine.pipeline.weights.folders import WeightFolders
from distllm.engine.pipeline.weights.hash_store import HashStore
from distllm.engine.pipeline.weights.local_copy import check_copy
from distllm.engine.pipeline.weights.manifest import Manifest, decode_manifest
from distllm.engine.pipeline.weights.remotes import Connect, open_remotes
from distllm.engine.pipeline.weights.source import Holding
from distllm.engine.pipeline.weights.weight_cache import WeightCache
from distllm.engine.progress import Progress


class StageWeights:
    """`compute` runs what asks transformers about a model. `connect` opens clients, which are closed here."""

    def __init__(self, folders: WeightFolders, coordinator: Address, connect: Connect, compute: Executor) -> None:
        self._copy = None if folders.copy is None else Path(folders.copy)
        self._cache = WeightCache(Path(folders.cache))
        self._limit = CacheLimit(Path(folders.cache), folders.cache_limit_bytes)
        self._hashes = HashStore(Path(folders.hashes))
        self._coordinator = coordinator
        self._connect = connect
        self._compute = compute
        self._fingerprint, self._holding = "", Holding(b"", {})  # of the last model that was asked for

    def find_holding(self, fingerprint: str) -> Holding | None:
        """What other peers can have of a checkpoint from here."""
        return self._holding if fingerprint == self._fingerprint else None

    async def obtain(self, config: StageConfig, on_progress: Progress) -> Path:
        """A directory from which the stage can be loaded. One call at a time.

        `on_progress` may be called in another thread.
        Raises CheckpointError or OSError, each with one line for the operator.
        """
        self._limit.use(self._cache.path(config.fingerprint))
        encoded = await self._manifest(config)
        manifest = decode_manifest(encoded, config.fingerprint)
        names = await self._names(config, manifest)
        known = self.find_holding(config.fingerprint) or Holding(encoded, {})
        if self._copy is None:
            path = self._cache.path(config.fingerprint)
            await self._fetch(config, manifest, names, on_progress)
            places = self._cache.places(config.fingerprint)
        else:
            path = self._copy
            places = await asyncio.to_thread(check_copy, path, manifest, names, self._hashes, on_progress)
        self._fingerprint, self._holding = config.fingerprint, Holding(encoded, {**known.places, **places})
        return path

    async def _manifest(self, config: StageConfig) -> bytes:
        """Encoded, and in the cache with the config that is in it."""
        encoded = self._cache.manifest(config.fingerprint)
        if encoded is None:
            async with open_remotes(self._coordinator, config, self._connect) as remotes:
                encoded = await remotes.manifest()
            self._cache.keep_manifest(config.fingerprint, encoded)
        return encoded

    async def _names(self, config: StageConfig, manifest: Manifest) -> set[str]:
        """Of the tensors that the stage holds."""
        layers = LayerRange(config.begin, config.end, config.num_layers)
        find = partial(find_held, self._cache.path(config.fingerprint), layers, manifest.tensors)
        _, names = await asyncio.get_running_loop().run_in_executor(self._compute, find)
        return names

    async def _fetch(self, config: StageConfig, manifest: Manifest, names: set[str], on_progress: Progress) -> None:
        """Have the tensors in the cache, and an index of all that are there."""
        missing = {
            name: manifest.tensors[name] for name in sorted(names - self._cache.places(config.fingerprint).keys())
        }
        if missing:
            num_bytes = sum(record.num_bytes for record in missing.values())
            layers = LayerRange(config.begin, config.end, config.num_layers)
            progress = ByteProgress(f"fetching {layers} ({byte_size(num_bytes)})", num_bytes, on_progress)
            await asyncio.to_thread(self._limit.make_room, num_bytes)
            async with open_remotes(self._coordinator, config, self._connect) as remotes:
                await WeightFetch(remotes, self._cache, config.fingerprint, progress.add).fetch(missing)
        await asyncio.to_thread(self._cache.write_index, config.fingerprint)
