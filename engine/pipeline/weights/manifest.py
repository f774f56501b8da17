"""What a checkpoint consists of, tensor by tensor: enough to tell whether one elsewhere is the same.

Its fingerprint is the SHA-256 of its encoding: whoever was told that can believe the manifest, whoever sends it.
Importable without torch.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from distllm.engine.checkpoint import (
    DTYPE_BITS,
    GPTQ_CONFIG_NAME,
    CheckpointError,
    StoredTensor,
    find_shards,
    refuse_pointer,
)
from distllm.engine.pipeline.weights.byte_progress import ByteProgress
from distllm.engine.pipeline.weights.hash_store import HashStore
from distllm.engine.pipeline.weights.tensor_place import TensorPlace, find_places
from distllm.engine.progress import Progress

CONFIG_NAME = "config.json"
FILE_NAMES = (CONFIG_NAME, GPTQ_CONFIG_NAME)
"""What a stage needs beside tensors. A manifest that names others is refused."""

Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""In hexadecimal."""


class TensorRecord(msgspec.Struct, frozen=True):
    """A stored tensor, by the names of its safetensors header, and the SHA-256 of its bytes."""

    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    sha256: Sha256

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    def in_file(self, name: str, shard: Path) -> StoredTensor:
        """The same in a file."""
        return StoredTensor(name, self.dtype, self.shape, shard)


class Manifest(msgspec.Struct, frozen=True):
    """`files` are the contents of those of FILE_NAMES that there are, `tensors` all by name."""

    files: Mapping[str, bytes]
    tensors: Mapping[str, TensorRecord]

    def encode(self) -> bytes:
        """The same bytes for the same checkpoint, however its tensors are divided over files."""
        return msgspec.msgpack.encode(self, order="deterministic")


def fingerprint_of(encoded: bytes) -> str:
    """Of an encoded manifest."""
    return hashlib.sha256(encoded).hexdigest()


def decode_manifest(encoded: bytes, fingerprint: str) -> Manifest:
    """The manifest that has this fingerprint. Raises CheckpointError for any other, or one of no checkpoint."""
    if fingerprint_of(encoded) != fingerprint:
        raise CheckpointError("the manifest of the model is not the one that its fingerprint names")
    try:
        manifest = msgspec.msgpack.decode(encoded, type=Manifest)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"the manifest of the model is malformed: {error}") from None
    if unknown := manifest.files.keys() - set(FILE_NAMES):
        raise CheckpointError(f"the manifest of the model has a file that no stage needs, {min(unknown)!r}")
    for name, record in manifest.tensors.items():
        if record.dtype not in DTYPE_BITS:
            raise CheckpointError(f"the manifest of the model has {name} of the unknown type {record.dtype}")
    return manifest


def make_manifest(path: Path, hashes: HashStore, on_progress: Progress) -> tuple[Manifest, dict[str, TensorPlace]]:
    """The manifest of a checkpoint directory, and where its tensors lie.

    Reads all that `hashes` does not know. Raises CheckpointError or OSError.
    """
    places = find_places(find_shards(path))
    num_bytes = sum(place.tensor.num_bytes for place in places.values())
    progress = ByteProgress("hashing the weights", num_bytes, on_progress)
    sha256 = hashes.hash_tensors(places.values(), progress.add)
    tensors = {
        name: TensorRecord(place.tensor.dtype, place.tensor.shape, sha256[name]) for name, place in places.items()
    }
    return Manifest(read_files(path), tensors), places


def read_files(path: Path) -> dict[str, bytes]:
    """Those of FILE_NAMES that a checkpoint directory has. Raises CheckpointError."""
    files = {}
    for file in (path / name for name in FILE_NAMES):
        refuse_pointer(file)
        try:
            files[file.name] = file.read_bytes()
        except FileNotFoundError:
            if file.name == CONFIG_NAME:
                raise CheckpointError(f"{path} has no {CONFIG_NAME}; is it a Hugging Face checkpoint?") from None
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    return files


def differing_settings(one: bytes, other: bytes) -> list[str]:
    """What two JSON objects do not agree in, by name. Raises CheckpointError where one is none."""
    try:
        documents = [json.loads(text) for text in (one, other)]
        first, second = (dict(document) for document in documents)
    except (ValueError, TypeError, RecursionError):
        raise CheckpointError("a config is no JSON object") from None
    missing = object()
    return sorted(
        name for name in first.keys() | second.keys() if first.get(name, missing) != second.get(name, missing)
    )
