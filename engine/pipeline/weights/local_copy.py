"""Compares a checkpoint on this machine with the coordinator's manifest."""

from collections.abc import Collection
from pathlib import Path

from distllm.engine.checkpoint import CheckpointError, present_files
from distllm.engine.pipeline.stage_model.plan import stored_files
from distllm.engine.pipeline.weights.byte_progress import ByteProgress
from distllm.engine.pipeline.weights.hash_store import HashStore
from distllm.engine.pipeline.weights.manifest import FILE_NAMES, Manifest, differing_settings, read_files
from distllm.engine.pipeline.weights.tensor_place import TensorPlace, find_places
from distllm.engine.progress import Progress

_SETTINGS_WITHOUT_EFFECT = frozenset({"_name_or_path", "transformers_version"})


def check_copy(
    path: Path, manifest: Manifest, names: Collection[str], hashes: HashStore, on_progress: Progress
) -> dict[str, TensorPlace]:
    """Where the tensors `names` are in a checkpoint directory, all of them what the manifest says.

    Raises CheckpointError, which names what differs, or OSError.
    """
    _check_files(path, manifest)
    files = stored_files(path)
    if missing := set(names) - files.keys():
        raise _refusal(path, f"it has no {min(missing)}")
    found = find_places(present_files(path, (files[name] for name in names)))
    places = {name: found[name] for name in sorted(names)}
    num_bytes = sum(place.tensor.num_bytes for place in places.values())
    progress = ByteProgress(f"comparing {path.name} with the coordinator's", num_bytes, on_progress)
    sha256 = hashes.hash_tensors(places.values(), progress.add)
    for name, place in places.items():
        record = manifest.tensors[name]
        if record.in_file(name, place.tensor.shard) != place.tensor:
            here, there = (f"{it.dtype} {list(it.shape)}" for it in (place.tensor, record))
            raise _refusal(path, f"{name} is {here} here and {there} there")
        if record.sha256 != sha256[name]:
            raise _refusal(path, f"{name} has the SHA-256 {sha256[name][:12]} here and {record.sha256[:12]} there")
    return places


def _check_files(path: Path, manifest: Manifest) -> None:
    files = read_files(path)
    for name in FILE_NAMES:
        differing = differing_settings(files.get(name, b"{}"), manifest.files.get(name, b"{}"))
        if named := [setting for setting in differing if setting not in _SETTINGS_WITHOUT_EFFECT]:
            raise _refusal(path, f"in {name} they differ in {', '.join(named[:3])}")


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not the coordinator's model: {reason}; give this peer a copy of that, or no --model, and the "
        "weights are sent to it"
    )
