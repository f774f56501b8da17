"""DeepSpeed's inference checkpoint descriptor: which file each rank opens. Importable without torch.

A converted checkpoint is a directory with this descriptor, a safetensors file a rank, and what a Hugging Face
checkpoint has beside its weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.engine.checkpoint import WEIGHTS_NAME, CheckpointError, read_json

DESCRIPTOR_NAME = "ds_inference_config.json"
"""As DeepSpeed calls the one that it writes."""

_TYPE = "ds_model"  # DeepSpeed's word for a model that it has no loader of its own for
_VERSION = 1.0
_REMEDY = "write it with `distllm convert`"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A directory and, in the order of the ranks, the names of the files in it."""

    directory: Path
    files: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.directory / file for file in self.files)

    @property
    def tp_size(self) -> int:
        return len(self.files)

    @property
    def is_divided(self) -> bool:
        """Whether there are several files. A single one is an ordinary Hugging Face checkpoint."""
        return self.tp_size > 1

    def check_size(self, asked: int | None) -> None:
        """Raises CheckpointError where it was converted for another number of ranks than is asked for."""
        if self.is_divided and asked not in (None, self.tp_size):
            raise CheckpointError(
                f"{self.directory} was converted for tensor_parallel_size {self.tp_size}, not {asked}: "
                f"give --tensor-parallel-size {self.tp_size}, or convert it again"
            )


def rank_file_names(size: int) -> tuple[str, ...]:
    """A single file has the name that every reader of Hugging Face checkpoints looks for."""
    if size == 1:
        return (WEIGHTS_NAME,)
    return tuple(f"tp_{rank:02d}_of_{size:02d}.safetensors" for rank in range(size))


def descriptor_text(size: int, base_dir: Path) -> str:
    """The JSON document. `base_dir` is for readers that are handed the object rather than the file."""
    document = {
        "type": _TYPE,
        "version": _VERSION,
        "parallelization": "tp",
        "tp_size": size,
        "base_dir": str(base_dir),
        "checkpoints": list(rank_file_names(size)),
    }
    return json.dumps(document, indent=2) + "\n"


def read_descriptor(source: str | Path | Mapping[str, Any]) -> Descriptor:
    """Of a converted directory, of the descriptor file, or of the object that it holds.

    Files are looked for beside the descriptor, then in its base_dir. Raises CheckpointError naming the field.
    """
    if isinstance(source, Mapping):
        return _located(source, "checkpoint_dict", None)
    path = Path(source).expanduser()
    file = path / DESCRIPTOR_NAME if path.is_dir() else path
    return _located(read_json(file), str(file), file.parent)


def find_descriptor(path: Path) -> Descriptor | None:
    """The descriptor of a directory; None where it is not a converted checkpoint. Raises CheckpointError."""
    return read_descriptor(path) if (path / DESCRIPTOR_NAME).is_file() else None


def choose_size(path: Path, asked: int | None) -> int | None:
    """How many ranks a checkpoint directory starts with, None where it does not say.

    `asked` None takes what it was converted for. Raises CheckpointError where another number is asked for.
    """
    descriptor = find_descriptor(path)
    if descriptor is None or not descriptor.is_divided:
        return asked
    descriptor.check_size(asked)
    return descriptor.tp_size


def _located(document: Mapping[str, Any], name: str, beside: Path | None) -> Descriptor:
    names = _file_names(document, name)
    places = _places(document, beside)
    if not places and not Path(names[0]).is_absolute():
        raise CheckpointError(f"{name} has no base_dir: name the directory that holds its checkpoints")
    for place in places or [Path()]:
        paths = [place / file for file in names]
        if all(path.is_file() and path.parent == paths[0].parent for path in paths):
            return _agreeing(Descriptor(paths[0].parent, tuple(path.name for path in paths)), name)
    last = (places or [Path(names[0]).parent])[-1]
    missing = next((file for file in names if not (last / file).is_file()), names[0])
    raise CheckpointError(f"{name}: checkpoints names {missing}, which is not in {last}; {_REMEDY} again")


def _places(document: Mapping[str, Any], beside: Path | None) -> list[Path]:
    """Where the files may be."""
    places = [] if beside is None else [beside]
    if isinstance(base_dir := document.get("base_dir"), str) and base_dir:
        places.append((beside or Path()) / Path(base_dir).expanduser())
    return places


def _agreeing(found: Descriptor, name: str) -> Descriptor:
    """A descriptor that lies elsewhere must name the files in the order of the one beside them."""
    own = found.directory / DESCRIPTOR_NAME
    if not own.is_file():
        raise CheckpointError(f"{name}: {found.directory} has no {DESCRIPTOR_NAME}; {_REMEDY}")
    if _file_names(read_json(own), str(own)) != list(found.files):
        raise CheckpointError(f"{name}: checkpoints are not those that {own} names, in its order")
    return found


def _file_names(document: Mapping[str, Any], name: str) -> list[str]:
    """`checkpoints`, one a rank. DeepSpeed also writes them as an object, with what is not divided apart."""
    if (parallelization := document.get("parallelization")) != "tp":
        raise CheckpointError(f"{name}: parallelization must be 'tp', not {parallelization!r}; {_REMEDY}")
    names = document.get("checkpoints")
    if isinstance(names, Mapping) and not names.get("non_tp"):
        names = names.get("tp")
    if not isinstance(names, list) or not names or not all(isinstance(file, str) for file in names):
        raise CheckpointError(f"{name}: checkpoints must list one safetensors file a rank; {_REMEDY}")
    if other := next((file for file in names if not file.endswith(".safetensors")), None):
        raise CheckpointError(f"{name}: checkpoints names {other}, which is not a safetensors file; {_REMEDY}")
    size = document.get("tp_size", len(names))
    if size != len(names):
        raise CheckpointError(f"{name}: tp_size is {size!r}, and checkpoints lists {len(names)} files; {_REMEDY}")
    return names
