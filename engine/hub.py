"""Finds a checkpoint: a local directory as it is, or a hub name fetched as needed. Never imports torch."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
    SafetensorsParsingError,
)

from distllm.engine.checkpoint import (
    GPTQ_CONFIG_NAME,
    INDEX_NAME,
    WEIGHTS_NAME,
    Checkpoint,
    CheckpointError,
    StoredTensor,
    describe_checkpoint,
    find_shards,
    open_checkpoint,
)
from distllm.engine.conversion.descriptor import read_descriptor
from distllm.engine.conversion.rank_checkpoint import is_divided, open_for_rank

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    GPTQ_CONFIG_NAME,
    INDEX_NAME,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "tiktoken.model",
    "spiece.model",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
]


class ModelNotFound(Exception):
    """There is no such checkpoint, here or on the hub; the message is one line that says what to do."""


def resolve(model: str, revision: str | None = None) -> Path:
    """The directory of a checkpoint whose files are all there.

    `model` is a directory, the descriptor of a converted checkpoint, or a hub name such as "owner/name", of which
    only config, tokenizer, chat templates and the safetensors that its index names are fetched, with progress bars.
    Raises ModelNotFound.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return _check_directory(directory)
    if directory.exists():
        return _check_directory(_described(directory))
    if not _HUB_NAME.fullmatch(model):
        raise ModelNotFound(f"there is no directory {model}, and it is no hub name such as owner/name")
    return _fetch(model, revision)


def _check_directory(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise ModelNotFound(f"{directory} has no config.json; is it a Hugging Face checkpoint?")
    try:
        if not is_divided(directory):
            find_shards(directory)
    except CheckpointError as error:
        raise ModelNotFound(str(error)) from None
    return directory


def _described(file: Path) -> Path:
    """The directory of a converted checkpoint whose descriptor is given."""
    if file.suffix != ".json":
        raise ModelNotFound(f"{file} is a file; give the checkpoint's directory")
    try:
        return read_descriptor(file).directory
    except CheckpointError as error:
        raise ModelNotFound(str(error)) from None


def inspect(model: str, revision: str | None = None) -> Checkpoint:
    """What a checkpoint holds, without its weights: of a hub name only config, index and headers are fetched.

    Raises ModelNotFound or CheckpointError.
    """
    directory = Path(model).expanduser()
    if directory.exists() or not _HUB_NAME.fullmatch(model):
        return open_for_rank(resolve(model, revision))
    with _one_line_errors(model, revision):
        described = ["config.json", GPTQ_CONFIG_NAME, INDEX_NAME]
        directory = Path(snapshot_download(model, revision=revision, allow_patterns=described))
        files = _weight_files(directory)
        if all((directory / file).is_file() for file in files):
            return open_checkpoint(_check_directory(directory))
        return describe_checkpoint(
            directory, (tensor for file in files for tensor in _headers(model, directory, file))
        )


def _headers(name: str, directory: Path, file: str) -> Iterator[StoredTensor]:
    """The tensors of one safetensors file of the hub, of which the first bytes are read."""
    header = HfApi().parse_safetensors_file_metadata(name, file, revision=directory.name)
    for tensor, info in header.tensors.items():
        yield StoredTensor.described(tensor, info.dtype, info.shape, directory / file)


def _fetch(name: str, revision: str | None) -> Path:
    """First the small files, then the weights that the index among them names, all of one commit."""
    with _one_line_errors(name, revision):
        directory = Path(snapshot_download(name, revision=revision, allow_patterns=_SMALL_FILES))
        snapshot_download(name, revision=directory.name, allow_patterns=_weight_files(directory))
    return _check_directory(directory)


@contextlib.contextmanager
def _one_line_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turns what huggingface_hub raises into ModelNotFound."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise ModelNotFound(f"{name} is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it") from None
    except GatedRepoError:
        raise ModelNotFound(f"{name} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ModelNotFound(f"the hub knows no {name}; a private model needs HF_TOKEN") from None
    except RevisionNotFoundError:
        raise ModelNotFound(f"{name} has no revision {revision}") from None
    except RemoteEntryNotFoundError:
        raise ModelNotFound(f"{name} has no safetensors files, or not all of them") from None
    except (LocalEntryNotFoundError, RevisionResolutionError, httpx.TransportError):
        raise ModelNotFound(_unreachable(name)) from None
    except (HfHubHTTPError, HFValidationError, SafetensorsParsingError, OSError) as error:
        raise ModelNotFound(f"{name} cannot be fetched: {str(error).splitlines()[0]}") from None


def _weight_files(directory: Path) -> list[str]:
    index = directory / INDEX_NAME
    if not index.is_file():
        return [WEIGHTS_NAME]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise ModelNotFound(f"{index} is not an index of safetensors files") from None


def _unreachable(name: str) -> str:
    if constants.HF_HUB_OFFLINE:
        return f"{name} is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it"
    return f"{name} is not on this machine and {constants.ENDPOINT} cannot be reached; give a local directory"
