"""Converts a checkpoint into one safetensors file a rank with DeepSpeed's descriptor, and back into a single file.

Stored tensors are cut under their own names, one at a time, so that the way back gives the same tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from distllm.engine.checkpoint import DTYPE_BITS, CheckpointError, StoredTensor
from distllm.engine.conversion.descriptor import DESCRIPTOR_NAME, descriptor_text, rank_file_names
from distllm.engine.conversion.manifest import FileRecord, Manifest, record_file, write_manifest
from distllm.engine.conversion.output import check_free, check_room, whole_or_nothing
from distllm.engine.conversion.rank_checkpoint import METADATA_KEY, Cut, RankMetadata
from distllm.engine.conversion.small_files import copy_small_files
from distllm.engine.conversion.sources import Source, open_source
from distllm.engine.distributed.quantized_parts import find_all_parts
from distllm.engine.distributed.sharding import Part, plan_sharding
from distllm.engine.distributed.unit import inner_unit
from distllm.engine.loading import build_on_meta, check_loadable, load_config
from distllm.engine.memory import giving_back_freed_memory
from distllm.engine.quantization.safetensors_writer import PlannedTensor, SafetensorsFile

Parts = Mapping[str, Part]
"""By the names of stored tensors; what is not named is whole."""


@dataclass(frozen=True, slots=True)
class Division:
    """The tensors in the order in which they are written, and each rank's parts of them."""

    tensors: Sequence[StoredTensor]
    ranks: Sequence[Parts]

    def planned(self, parts: Parts) -> list[PlannedTensor]:
        """What a rank's file will hold."""
        return [_planned(tensor, parts.get(tensor.name)) for tensor in self.tensors]

    def cuts(self, parts: Parts) -> Mapping[str, Cut]:
        """The same for the file's metadata."""
        shapes = {tensor.name: tensor.shape for tensor in self.tensors}
        return {name: Cut(part.dim, part.spans, shapes[name]) for name, part in parts.items()}

    @property
    def num_bytes(self) -> int:
        """Of all ranks' tensors."""
        return sum(planned.num_bytes for parts in self.ranks for planned in self.planned(parts))


def convert_checkpoint_to_deepspeed(
    checkpoint_path: str | Path,
    output_path: str | Path,
    tensor_parallel_size: int,
    on_progress: Callable[[float], object] = lambda _: None,
) -> Path:
    """Write `checkpoint_path` for so many ranks. Returns the path of the descriptor in the new `output_path`.

    `checkpoint_path` is a Hugging Face directory, a file of weights in one (.safetensors, .pt, .bin), or a
    directory that was converted before; nothing in it is ever run. A size of 1 writes one Hugging Face checkpoint,
    bit for bit what it once was. `output_path` appears when all of it is on disk; `on_progress` hears the fraction
    that is written.

    Raises CheckpointError for what cannot be read, CannotDivide for what cannot be divided, FileExistsError for an
    output that is there already, and OSError for what cannot be written; each with one line, and no output.
    """
    if type(tensor_parallel_size) is not int or tensor_parallel_size < 1:
        raise ValueError(f"tensor_parallel_size must be a whole number of at least 1, not {tensor_parallel_size!r}")
    path, out = Path(checkpoint_path).expanduser(), Path(output_path).expanduser()
    if not path.exists():
        raise CheckpointError(f"there is no {path}; give a checkpoint's directory")
    check_free(out.resolve())
    with open_source(path) as source:
        division = divide_checkpoint(source, tensor_parallel_size)
        check_room(out, division.num_bytes)
        with whole_or_nothing(out) as directory, giving_back_freed_memory():
            records = _write_ranks(source, division, directory, on_progress)
            copy_small_files(source.checkpoint.path, directory)
            descriptor = descriptor_text(tensor_parallel_size, out.resolve())
            (directory / DESCRIPTOR_NAME).write_text(descriptor, encoding="utf-8")
            others = {name: record_file(directory / name) for name in _names_in(directory) if name not in records}
            written_by = f"distllm {version('distllm')}"
            write_manifest(directory, Manifest(written_by, tensor_parallel_size, {**records, **others}))
    return out / DESCRIPTOR_NAME


def divide_checkpoint(source: Source, size: int) -> Division:
    """Raises CheckpointError for a model that is not known, CannotDivide for one that cannot be divided."""
    checkpoint = source.checkpoint
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: (-DTYPE_BITS[tensor.dtype], tensor.name))
    check_loadable(checkpoint, build_on_meta(checkpoint, load_config(checkpoint), torch.bfloat16), torch.bfloat16)
    if size == 1:
        return Division(tensors, [{}])
    model = build_on_meta(checkpoint, load_config(checkpoint), torch.bfloat16)
    plans = [plan_sharding(model, rank, size, unit=inner_unit(checkpoint, None)) for rank in range(size)]
    return Division(tensors, [find_all_parts(model, checkpoint, plan.parts, source.read) for plan in plans])


def _planned(tensor: StoredTensor, part: Part | None) -> PlannedTensor:
    shape = list(tensor.shape)
    if part is not None:
        shape[part.dim] = part.size()
    left = StoredTensor(tensor.name, tensor.dtype, tuple(shape), tensor.shard)
    return PlannedTensor(left.name, left.dtype, left.shape, left.num_bytes)


def _write_ranks(
    source: Source, division: Division, directory: Path, on_progress: Callable[[float], object]
) -> dict[str, FileRecord]:
    """Write the ranks' files side by side, so that each tensor is read once."""
    size, total, done = len(division.ranks), max(1, division.num_bytes), 0
    names = rank_file_names(size)
    with ExitStack() as stack:
        files = [
            stack.enter_context(
                SafetensorsFile(directory / name, division.planned(parts), _metadata(source, division, rank))
            )
            for rank, (name, parts) in enumerate(zip(names, division.ranks, strict=True))
        ]
        for tensor in division.tensors:
            whole = _read(source, tensor)
            for file, parts in zip(files, division.ranks, strict=True):
                part = parts.get(tensor.name)
                done += file.append(whole if part is None else part.take(whole))
            on_progress(done / total)
    return {
        name: FileRecord((directory / name).stat().st_size, file.sha256)
        for name, file in zip(names, files, strict=True)
    }


def _metadata(source: Source, division: Division, rank: int) -> dict[str, str]:
    """What the file says of itself: what the source's said and, where the model is divided, what the rank holds."""
    size = len(division.ranks)
    if size == 1:
        return dict(source.metadata)
    own = RankMetadata(rank, size, division.cuts(division.ranks[rank]))
    return {**source.metadata, METADATA_KEY: msgspec.json.encode(own).decode()}


def _read(source: Source, tensor: StoredTensor) -> Tensor:
    whole = source.read(tensor.name)
    if tuple(whole.shape) != tensor.shape:
        raise CheckpointError(f"{tensor.shard}: {tensor.name} is not of the shape that its header tells")
    return whole


def _names_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
