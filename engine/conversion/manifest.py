"""The manifest of a converted checkpoint: the size and the SHA-256 of every file. Importable without torch.

It is written last: a directory without one was not written to its end.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from distllm.engine.checkpoint import CheckpointError

MANIFEST_NAME = "manifest.json"

_REMEDY = "fetch or convert it again"
_PIECE_BYTES = 1 << 20


class FileRecord(msgspec.Struct, frozen=True):
    """What a file was when it was written."""

    num_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """Files by name, relative to the directory. `written_by` is the program and its version."""

    written_by: str
    tp_size: int
    files: Mapping[str, FileRecord]


def write_manifest(directory: Path, manifest: Manifest) -> None:
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (directory / MANIFEST_NAME).write_bytes(encoded + b"\n")


def read_manifest(directory: Path) -> Manifest:
    """Raises CheckpointError where there is none, or none that can be read."""
    path = directory / MANIFEST_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no {MANIFEST_NAME}: it is half a checkpoint; {_REMEDY}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {_REMEDY}") from None


def check_sizes(directory: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Raises CheckpointError naming a file that is missing or of another size. Opens none."""
    for name in names:
        record = manifest.files.get(name)
        if record is None:
            raise CheckpointError(f"{directory / MANIFEST_NAME} does not know {name}; {_REMEDY}")
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{directory} lacks {name}, which its {MANIFEST_NAME} lists; {_REMEDY}")
        num_bytes = path.stat().st_size
        if num_bytes != record.num_bytes:
            raise CheckpointError(
                f"{path} has {num_bytes} bytes, {MANIFEST_NAME} says {record.num_bytes}; {_REMEDY}"
            )


def verify(directory: Path, on_bytes: Callable[[int], object] = lambda _: None) -> Manifest:
    """Read every file that the manifest lists. Raises CheckpointError naming one whose contents have changed."""
    manifest = read_manifest(directory)
    check_sizes(directory, manifest, manifest.files)
    for name, record in manifest.files.items():
        if hash_file(directory / name, on_bytes) != record.sha256:
            raise CheckpointError(f"{directory / name} is not what was written: its SHA-256 differs; {_REMEDY}")
    return manifest


def record_file(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, hash_file(path))


def hash_file(path: Path, on_bytes: Callable[[int], object] = lambda _: None) -> str:
    """SHA-256 in hexadecimal. `on_bytes` hears how many were read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()
