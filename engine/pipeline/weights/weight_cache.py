"""What a peer has fetched of checkpoints, in directories that load like checkpoints.

DIR/<fingerprint>/manifest.msgpack    config.json
                  weights-3f0c...safetensors      some tensors, all verified
                  model.safetensors.index.json    which of them is where
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from distllm.engine.checkpoint import INDEX_NAME, CheckpointError
from distllm.engine.durable import locked, write_private
from distllm.engine.pipeline.weights.manifest import TensorRecord, decode_manifest, fingerprint_of
from distllm.engine.pipeline.weights.tensor_place import TensorPlace, find_places
from distllm.engine.pipeline.weights.unfinished_shard import UnfinishedShard, begin_shard

logger = logging.getLogger("distllm.pipeline")

_MANIFEST_NAME = "manifest.msgpack"


class WeightCache:
    """Several processes may use one at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, fingerprint: str) -> Path:
        """The directory of a checkpoint. Raises CheckpointError for what is no fingerprint."""
        if re.fullmatch(r"[0-9a-f]{64}", fingerprint) is None:
            raise CheckpointError(f"{fingerprint!r} is no fingerprint of a model")
        return self._directory / fingerprint

    def manifest(self, fingerprint: str) -> bytes | None:
        """The encoded manifest; None where it has not been fetched, or is damaged."""
        try:
            encoded = (self.path(fingerprint) / _MANIFEST_NAME).read_bytes()
        except OSError:
            return None
        return encoded if fingerprint_of(encoded) == fingerprint else None

    def keep_manifest(self, fingerprint: str, encoded: bytes) -> None:
        """Keep it and the files in it. Raises CheckpointError unless it is that manifest, or OSError."""
        manifest, path = decode_manifest(encoded, fingerprint), self.path(fingerprint)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in manifest.files.items():
            write_private(path / name, content)
        write_private(path / _MANIFEST_NAME, encoded)

    def places(self, fingerprint: str) -> dict[str, TensorPlace]:
        """Where the tensors are that have been fetched. Removes files that are damaged."""
        places: dict[str, TensorPlace] = {}
        for shard in sorted(self.path(fingerprint).glob("weights-*.safetensors")):
            try:
                places |= find_places([shard])
            except CheckpointError as error:
                logger.warning("%s; it is removed", error)
                shard.unlink(missing_ok=True)
        return places

    def begin_shard(
        self, fingerprint: str, tensors: Mapping[str, TensorRecord]
    ) -> AbstractContextManager[UnfinishedShard]:
        """A new file of the cache. Raises OSError."""
        digest = hashlib.sha256("\n".join(tensors).encode()).hexdigest()[:16]
        return begin_shard(self.path(fingerprint) / f"weights-{digest}.safetensors", tensors)

    def write_index(self, fingerprint: str) -> None:
        """Make the directory load as a checkpoint of what has been fetched. Raises OSError."""
        path = self.path(fingerprint)
        with locked(path):
            files = {name: place.tensor.shard.name for name, place in self.places(fingerprint).items()}
            write_private(path / INDEX_NAME, json.dumps({"weight_map": files}).encode())


def divide_into_shards(tensors: Mapping[str, int], max_bytes: int) -> Iterable[list[str]]:
    """The names in order, in lists of at most `max_bytes` or of one tensor; `tensors` are bytes by name."""
    names: list[str] = []
    num_bytes = 0
    for name, size in tensors.items():
        if names and num_bytes + size > max_bytes:
            yield names
            names, num_bytes = [], 0
        names.append(name)
        num_bytes += size
    if names:
        yield names
