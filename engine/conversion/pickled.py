"""Reads checkpoints that torch.save wrote: .pt, .pth and .bin files, memory-mapped. Never runs what they hold."""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from distllm.engine.checkpoint import CheckpointError, indexed_files, refuse_pointer

INDEX_NAME = "pytorch_model.bin.index.json"
WEIGHTS_NAME = "pytorch_model.bin"
SUFFIXES = (".bin", ".pt", ".pth")

_WRAPPERS = ("state_dict", "model", "module")
"""Names under which training programs put a model's tensors beside what else they save."""


def find_pickles(directory: Path) -> list[Path]:
    """The files with a checkpoint's tensors; none where there are no such files. Raises CheckpointError."""
    if (directory / INDEX_NAME).is_file():
        return indexed_files(directory / INDEX_NAME)
    if (directory / WEIGHTS_NAME).is_file():
        return [directory / WEIGHTS_NAME]
    files = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(files) > 1:
        raise CheckpointError(
            f"{directory} has {len(files)} files of weights and no {INDEX_NAME}; name the file to convert"
        )
    return files


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped where torch can. Raises CheckpointError for anything else in it."""
    refuse_pointer(path)
    tensors = dict(_tensors(path, _unwrap(_load(path))))
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return tensors


def _load(path: Path) -> object:
    """Only the zip format of torch 1.6 and later can be mapped; older files are read into memory."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch warns of, it then refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds more than tensors and wants to run code ({_wanted(error)}), which is refused; "
                "save its state_dict alone, or as safetensors"
            ) from None
        raise CheckpointError(f"{path} is not a file of torch.save's, or a damaged one") from None
    except Exception as error:  # torch raises whatever a damaged file makes it choke on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise CheckpointError(f"{path} cannot be read: {reason}; fetch it again") from None


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _wanted(error: pickle.UnpicklingError) -> str:
    """The name that the pickle asks for, out of torch's long advice."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else "a name that torch does not know"


def _unwrap(document: object) -> object:
    if isinstance(document, Mapping):
        for name in _WRAPPERS:
            if isinstance(inner := document.get(name), Mapping):
                return inner
    return document


def _tensors(path: Path, document: object) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{path} holds a {type(document).__name__}, not tensors by name")
    for name, tensor in document.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} holds {name!r}, which is not the name of a tensor")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name} holds a {type(tensor).__name__}, not a tensor")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{path}: {name} is not a plain dense tensor")
        yield name, tensor.detach()
