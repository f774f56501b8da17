"""A rank's file of a converted checkpoint: the rank's part of every stored tensor, under the tensor's own name.

What was cut, and from where, stands in the file's metadata: a rank opens no other. Importable without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from distllm.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    StoredTensor,
    describe_checkpoint,
    open_checkpoint,
    read_header,
)
from distllm.engine.conversion.descriptor import Descriptor, find_descriptor
from distllm.engine.conversion.manifest import check_sizes, read_manifest

METADATA_KEY = "distllm"


class Cut(msgspec.Struct, frozen=True):
    """What a rank holds of a tensor of `shape`: spans [start, stop) along `dim`, one after the other."""

    dim: int
    spans: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    @property
    def shape_left(self) -> tuple[int, ...]:
        """Of what the rank holds."""
        left = sum(stop - start for start, stop in self.spans)
        return (*self.shape[: self.dim], left, *self.shape[self.dim + 1 :])


class RankMetadata(msgspec.Struct, frozen=True):
    """`cuts` by the names of stored tensors; what is not named is whole."""

    rank: int
    size: int
    cuts: Mapping[str, Cut]


@dataclass(frozen=True, slots=True)
class RankCheckpoint(Checkpoint):
    """The tensors as they were before they were cut, each with the rank's file; `cuts` are its parts in that."""

    rank: int
    size: int
    cuts: Mapping[str, Cut]

    @property
    def in_files(self) -> Mapping[str, StoredTensor]:
        return {name: self._after_cut(tensor) for name, tensor in self.tensors.items()}

    def _after_cut(self, tensor: StoredTensor) -> StoredTensor:
        cut = self.cuts.get(tensor.name)
        return tensor if cut is None else StoredTensor(tensor.name, tensor.dtype, cut.shape_left, tensor.shard)


def is_divided(path: Path) -> bool:
    """Whether a directory was converted for several ranks. Raises CheckpointError where a file has changed size."""
    descriptor = find_descriptor(path)
    if descriptor is None or not descriptor.is_divided:
        return False
    manifest = read_manifest(path)
    check_sizes(path, manifest, manifest.files)
    return True


def open_for_rank(path: Path, rank: int = 0, size: int | None = None) -> Checkpoint:
    """A checkpoint directory as one of `size` ranks opens it; None takes any size. Raises CheckpointError.

    A converted one opens the rank's file alone, any other all of its files.
    """
    descriptor = find_descriptor(path)
    if descriptor is None or not descriptor.is_divided:
        return open_checkpoint(path)
    descriptor.check_size(size)
    check_sizes(path, read_manifest(path), descriptor.files[rank : rank + 1])
    return open_rank(descriptor, rank)


def open_rank(descriptor: Descriptor, rank: int) -> RankCheckpoint:
    """Raises CheckpointError where the file is not that of the rank, or config.json is no config."""
    file = descriptor.directory / descriptor.files[rank]
    metadata = _read_metadata(file)
    if (metadata.rank, metadata.size) != (rank, descriptor.tp_size):
        raise CheckpointError(
            f"{file} is the file of rank {metadata.rank} of {metadata.size}, not {rank} of {descriptor.tp_size}"
        )
    whole = describe_checkpoint(
        descriptor.directory, (_before_cut(tensor, metadata.cuts) for tensor in read_header(file))
    )
    return RankCheckpoint(whole.path, whole.config, whole.tensors, rank, descriptor.tp_size, metadata.cuts)


def read_file_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself. Raises CheckpointError."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def _read_metadata(file: Path) -> RankMetadata:
    try:
        return msgspec.json.decode(read_file_metadata(file).get(METADATA_KEY, "null"), type=RankMetadata)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{file} does not say which part of a model it holds: {error}") from None


def _before_cut(tensor: StoredTensor, cuts: Mapping[str, Cut]) -> StoredTensor:
    """Raises CheckpointError where the cut is not one that leaves this shape."""
    cut = cuts.get(tensor.name)
    if cut is None:
        return tensor
    is_within = 0 <= cut.dim < len(cut.shape) and all(
        0 <= start < stop <= cut.shape[cut.dim] for start, stop in cut.spans
    )
    if not is_within or tensor.shape != cut.shape_left:
        raise CheckpointError(f"{tensor.shard}: {tensor.name} is not the part that its metadata tells of")
    return StoredTensor(tensor.name, tensor.dtype, cut.shape, tensor.shard)
