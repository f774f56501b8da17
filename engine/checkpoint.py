"""A checkpoint directory: its config.json and the headers of its safetensors files, checked before anything loads.

Knows the file formats, not what the tensors mean. Importable without torch.
"""

import contextlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.engine.quantization.stored import StoredQuantization, UnreadableQuantization, parse_quantization

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
GPTQ_CONFIG_NAME = "quantize_config.json"
MAX_HEADER_BYTES = 100_000_000
_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}
"""Bits an element takes, by its name in a safetensors header."""


class CheckpointError(Exception):
    """A checkpoint cannot be served; the message is one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its safetensors header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Path

    @classmethod
    def described(cls, name: str, dtype: str, shape: Iterable[int], shard: Path) -> "StoredTensor":
        """Raises CheckpointError for a number type that is unknown."""
        if dtype not in DTYPE_BITS:
            raise CheckpointError(f"{shard}: tensor {name} has the unknown type {dtype}")
        return cls(name, dtype, tuple(shape), shard)

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint directory whose files are all there and whose headers agree with their sizes."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def in_files(self) -> Mapping[str, StoredTensor]:
        """The tensors as they lie in the files."""
        return self.tensors

    @property
    def shards(self) -> tuple[Path, ...]:
        return tuple(sorted({tensor.shard for tensor in self.tensors.values()}))

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def quantization(self) -> StoredQuantization | None:
        """How its weights are quantized. Raises UnreadableQuantization, unless describe_checkpoint made it."""
        for config in (self.config, self.text_config):
            stored = next((config[name] for name in _QUANTIZATION_KEYS if config.get(name)), None)
            if isinstance(stored, dict):
                return parse_quantization(stored)
            if stored:
                raise UnreadableQuantization(f"{stored!r}, where an object should stand")
        return None

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's part of the config, where the model has others."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config


def open_checkpoint(path: Path) -> Checkpoint:
    """Read config.json and every shard's header. Raises CheckpointError."""
    return describe_checkpoint(path, (tensor for shard in find_shards(path) for tensor in read_header(shard)))


def describe_checkpoint(path: Path, tensors: Iterable[StoredTensor]) -> Checkpoint:
    """The checkpoint of a directory with config.json, and of tensors stored there or elsewhere.

    Raises CheckpointError.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    config = _with_quantization(path, read_json(path / "config.json"), by_name)
    if not by_name:
        raise CheckpointError(f"{path} holds no tensors")
    checkpoint = Checkpoint(path, config, by_name)
    try:
        _ = checkpoint.quantization
    except UnreadableQuantization as error:
        raise CheckpointError(f"{path} is quantized as {error}") from None
    return checkpoint


def _with_quantization(path: Path, config: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """`config`, with what AutoGPTQ once wrote into a file of its own. Raises CheckpointError."""
    coded = next((name for name in names if name.endswith(".qweight")), None)
    nested = config.get("text_config")
    places = [config, nested] if isinstance(nested, dict) else [config]
    if coded is None or any(place.get(name) for place in places for name in _QUANTIZATION_KEYS):
        return config
    if not (path / GPTQ_CONFIG_NAME).is_file():
        files = f"neither config.json's quantization_config nor {GPTQ_CONFIG_NAME}"
        raise CheckpointError(f"{path} has quantized weights ({coded}) and {files} says how")
    return {**config, "quantization_config": {"quant_method": "gptq", **read_json(path / GPTQ_CONFIG_NAME)}}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError naming the file."""
    refuse_pointer(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; is it a Hugging Face checkpoint?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return document


def refuse_pointer(path: Path) -> None:
    """Raises CheckpointError where git left its note of a large file instead of the file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CheckpointError(
                f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in {path.parent}"
            )


def find_shards(path: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, every one of them present."""
    if (path / INDEX_NAME).is_file():
        return indexed_files(path / INDEX_NAME)
    if (path / WEIGHTS_NAME).is_file():
        return [path / WEIGHTS_NAME]
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        remedy = f"distllm convert {path} OUT --tensor-parallel-size 1"
        raise CheckpointError(f"{path} has no safetensors files; convert those that it has: `{remedy}`")
    if any(path.glob("*.gguf")):
        raise CheckpointError(f"{path} has no safetensors files; convert its weights with save_pretrained")
    if any(path.glob("tp_*_of_*.safetensors")):
        remedy = f"distllm convert {path} OUT --tensor-parallel-size 1"
        raise CheckpointError(f"{path} was converted for several ranks; put it together first: `{remedy}`")
    raise CheckpointError(f"{path} has no {WEIGHTS_NAME} and no {INDEX_NAME}")


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names, beside it. Raises CheckpointError where one is missing."""
    return present_files(index.parent, read_index(index).values())


def read_index(index: Path) -> Mapping[str, str]:
    """The name of the file that each tensor is in. Raises CheckpointError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    files = {name: str(file) for name, file in weight_map.items()}
    if any(Path(file).name != file for file in files.values()):
        raise CheckpointError(f"{index} names a file outside the checkpoint")
    return files


def present_files(directory: Path, names: Iterable[str]) -> list[Path]:
    """The files of `names`, each once and in order. Raises CheckpointError where one is missing."""
    names = sorted(set(names))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{directory} lacks {len(missing)} of {len(names)} shards, first {missing[0]}")
    return [directory / name for name in names]


def read_header(shard: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, as `locate_tensors` finds them."""
    return [tensor for tensor, _ in locate_tensors(shard)]


def locate_tensors(shard: Path) -> list[tuple[StoredTensor, int]]:
    """The tensors of one safetensors file and where in it the bytes of each begin.

    Raises CheckpointError unless the file is as long as its header says.

    The file is: header length (8 bytes, little endian) | header (JSON) | tensor bytes.
    """
    refuse_pointer(shard)
    try:
        file_bytes = shard.stat().st_size
        with shard.open("rb") as file:
            prefix = file.read(8)
            header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(f"{shard} is cut short or not a safetensors file")
            header = json.loads(file.read(header_bytes))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{shard} cannot be read: {error}") from None
    located = _parse_header(header, shard)
    expected_bytes = 8 + header_bytes + sum(tensor.num_bytes for tensor, _ in located)
    if file_bytes != expected_bytes:
        fault = "cut short" if file_bytes < expected_bytes else "too long"
        raise CheckpointError(
            f"{shard} is {fault}: it has {file_bytes} bytes, its header speaks of {expected_bytes}; fetch it again"
        )
    return [(tensor, 8 + header_bytes + begin) for tensor, begin in located]


def _parse_header(header: object, shard: Path) -> list[tuple[StoredTensor, int]]:
    """The tensors, and where each begins behind the header."""
    if not isinstance(header, dict):
        raise CheckpointError(f"{shard} has a header that is not an object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        tensors = [
            StoredTensor.described(name, entry["dtype"], map(int, entry["shape"]), shard)
            for name, entry in entries.items()
        ]
        spans = {tensor.name: tuple(map(int, entries[tensor.name]["data_offsets"])) for tensor in tensors}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{shard} has a malformed header; fetch it again") from None
    _check_spans(tensors, spans, shard)
    return [(tensor, spans[tensor.name][0]) for tensor in tensors]


def _check_spans(tensors: list[StoredTensor], spans: dict[str, tuple[int, ...]], shard: Path) -> None:
    """Tensors lie one after the other: each span [begin, end) begins where the one before it ends."""
    begin = 0
    for tensor in sorted(tensors, key=lambda tensor: spans[tensor.name]):
        end = begin + tensor.num_bytes
        if spans[tensor.name] != (begin, end) or min(tensor.shape, default=0) < 0:
            raise CheckpointError(f"{shard} has a malformed header: {tensor.name} is misplaced; fetch it again")
        begin = end
