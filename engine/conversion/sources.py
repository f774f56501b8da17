"""What is converted: the stored tensors of a checkpoint, one at a time, whatever files they are in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from distllm.engine.checkpoint import INDEX_NAME as SAFETENSORS_INDEX_NAME
from distllm.engine.checkpoint import (
    WEIGHTS_NAME,
    Checkpoint,
    CheckpointError,
    StoredTensor,
    describe_checkpoint,
    find_shards,
    read_header,
)
from distllm.engine.conversion.descriptor import Descriptor, find_descriptor, read_descriptor
from distllm.engine.conversion.manifest import verify
from distllm.engine.conversion.pickled import SUFFIXES, find_pickles, load_pickle
from distllm.engine.conversion.rank_checkpoint import METADATA_KEY, Cut, open_rank, read_file_metadata
from distllm.engine.quantization.safetensors_writer import DTYPE_NAMES


class Source(Protocol):
    """A checkpoint and its tensors. `metadata` is what the safetensors files say of themselves."""

    checkpoint: Checkpoint
    metadata: Mapping[str, str]

    def read(self, name: str) -> Tensor:
        """The whole stored tensor. Raises CheckpointError where it cannot be had."""


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A checkpoint directory, a converted directory or its descriptor, or one file of weights beside a config.json.

    Every file of a converted one is compared with its manifest first. Raises CheckpointError.
    """
    with ExitStack() as files:
        if (divided := _divided(path)) is not None:
            verify(divided.directory)
            yield _RankSource(divided, files)
        elif pickles := _pickles(path):
            yield _PickledSource(path if path.is_dir() else path.parent, pickles)
        else:
            yield _SafetensorsSource(*_shards(path), files)


def _divided(path: Path) -> Descriptor | None:
    found = read_descriptor(path) if path.suffix == ".json" else find_descriptor(path)
    return found if found is not None and found.is_divided else None


def _pickles(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    is_safe = (path / WEIGHTS_NAME).is_file() or (path / SAFETENSORS_INDEX_NAME).is_file()
    return [] if is_safe or not path.is_dir() else find_pickles(path)


def _shards(path: Path) -> tuple[Path, list[Path]]:
    if path.suffix == ".json":  # the descriptor of a single file
        descriptor = read_descriptor(path)
        return descriptor.directory, list(descriptor.paths)
    return (path.parent, [path]) if path.is_file() else (path, find_shards(path))


class _SafetensorsSource:
    def __init__(self, directory: Path, shards: Sequence[Path], files: ExitStack) -> None:
        self.checkpoint = describe_checkpoint(
            directory, (tensor for shard in shards for tensor in read_header(shard))
        )
        self.metadata: Mapping[str, str] = read_file_metadata(shards[0])
        self._files = {shard: files.enter_context(_open(shard)) for shard in shards}

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self.checkpoint.tensors[name].shard].get_tensor(name)
        return tensor


class _PickledSource:
    def __init__(self, directory: Path, paths: Sequence[Path]) -> None:
        self._tensors: dict[str, Tensor] = {}
        described = []
        for path in paths:
            for name, tensor in load_pickle(path).items():
                if tensor.dtype not in DTYPE_NAMES:
                    raise CheckpointError(
                        f"{path}: {name} is of {tensor.dtype}, which safetensors has no place for"
                    )
                self._tensors[name] = tensor
                described.append(StoredTensor(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), path))
        self.checkpoint = describe_checkpoint(directory, described)
        self.metadata: Mapping[str, str] = {"format": "pt"}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


class _RankSource:
    def __init__(self, descriptor: Descriptor, files: ExitStack) -> None:
        self._ranks = [
            _Rank(open_rank(descriptor, rank).cuts, files.enter_context(_open(path)), path)
            for rank, path in enumerate(descriptor.paths)
        ]
        self.checkpoint: Checkpoint = open_rank(descriptor, 0)
        metadata = read_file_metadata(descriptor.paths[0])
        self.metadata: Mapping[str, str] = {name: text for name, text in metadata.items() if name != METADATA_KEY}

    def read(self, name: str) -> Tensor:
        """Put together from the ranks' parts. What several of them hold is the first's."""
        first = self._ranks[0]
        if name not in first.cuts:
            whole: Tensor = first.file.get_tensor(name)
            return whole
        cuts = [rank.cut(name) for rank in self._ranks]
        return join_parts(
            f"{self.checkpoint.path}: {name}", cuts, [rank.file.get_tensor(name) for rank in self._ranks]
        )


@dataclass(frozen=True, slots=True)
class _Rank:
    cuts: Mapping[str, Cut]
    file: Any
    path: Path

    def cut(self, name: str) -> Cut:
        """Raises CheckpointError where the rank holds the whole of what another holds a part of."""
        if name not in self.cuts:
            raise CheckpointError(f"{self.path}: {name} is not cut, as it is on other ranks; convert it again")
        return self.cuts[name]


def _open(shard: Path) -> Any:
    return safe_open(shard, framework="pt", device="cpu", backend="mmap")


def join_parts(name: str, cuts: Sequence[Cut], parts: Sequence[Tensor]) -> Tensor:
    """The whole tensor. Where parts overlap, the first counts. Raises CheckpointError, naming it, for a gap."""
    _check_cover(name, cuts)
    whole = torch.empty(cuts[0].shape, dtype=parts[0].dtype)
    for cut, part in reversed(list(zip(cuts, parts, strict=True))):
        offset = 0
        for start, stop in cut.spans:
            whole.narrow(cut.dim, start, stop - start).copy_(part.narrow(cut.dim, offset, stop - start))
            offset += stop - start
    return whole


def _check_cover(name: str, cuts: Sequence[Cut]) -> None:
    """Raises CheckpointError where no rank holds some of the tensor."""
    reached = 0
    for start, stop in sorted(span for cut in cuts for span in cut.spans):
        if start > reached:
            break
        reached = max(reached, stop)
    if reached < cuts[0].shape[cuts[0].dim] or len({(cut.dim, cut.shape) for cut in cuts}) > 1:
        raise CheckpointError(f"{name} cannot be put together: the ranks' parts are not those of one tensor")
