"""A manifest knows a checkpoint by its contents alone, and is made anew only of what has changed."""

import os
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from distllm.engine.checkpoint import INDEX_NAME, CheckpointError
from distllm.engine.pipeline.weights.hash_store import HashStore
from distllm.engine.pipeline.weights.manifest import (
    Manifest,
    TensorRecord,
    decode_manifest,
    fingerprint_of,
    make_manifest,
)
from tests.engine.pipeline.weights.machines import fingerprint, hold, make_tensors, manifest_of, write_checkpoint

SIZES = {"a": 5_000, "b": 0, "c": 70_000}


def test_the_division_over_files_does_not_matter(tmp_path: Path) -> None:
    tensors = make_tensors(**SIZES)
    whole = write_checkpoint(tmp_path / "whole", tensors)
    divided = write_checkpoint(tmp_path / "divided", {"c": tensors["c"]})
    (divided / "model.safetensors").rename(divided / "two.safetensors")
    save_file({"b": tensors["b"], "a": tensors["a"]}, divided / "one.safetensors")
    weight_map = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (divided / INDEX_NAME).write_bytes(msgspec.json.encode({"weight_map": weight_map}))
    (divided / "tokenizer.json").write_text("{}")
    assert hold(whole, tmp_path / "h").manifest == hold(divided, tmp_path / "h").manifest


def test_any_bit_and_the_config_do(tmp_path: Path) -> None:
    tensors = make_tensors(**SIZES)
    first = hold(write_checkpoint(tmp_path / "1", tensors), tmp_path / "h")
    configured = hold(write_checkpoint(tmp_path / "2", tensors, '{"model_type": "other"}'), tmp_path / "h")
    reshaped = hold(write_checkpoint(tmp_path / "3", {**tensors, "a": tensors["a"].view(50, 100)}), tmp_path / "h")
    tensors["c"][69_999] ^= 1
    changed = hold(write_checkpoint(tmp_path / "4", tensors), tmp_path / "h")
    assert len({fingerprint(holding) for holding in (first, configured, reshaped, changed)}) == 4
    differing = [name for name in SIZES if manifest_of(first).tensors[name] != manifest_of(changed).tensors[name]]
    assert differing == ["c"]


def test_what_was_hashed_is_hashed_again_only_when_its_file_changes(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", make_tensors(**SIZES))
    first = hold(path, tmp_path / "hashes")
    file = path / "model.safetensors"
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had happened
    assert hold(path, tmp_path / "hashes") == first
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert hold(path, tmp_path / "hashes").manifest != first.manifest


def test_hashes_that_are_damaged_on_disk_are_made_anew(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", make_tensors(**SIZES))
    first = hold(path, tmp_path / "hashes")
    (record,) = (tmp_path / "hashes").iterdir()
    record.write_bytes(b"\x93nonsense")
    assert hold(path, tmp_path / "hashes") == first


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", make_tensors(**SIZES))
    hashed: list[float] = []
    known: list[float] = []
    for told in (hashed, known):
        make_manifest(path, HashStore(tmp_path / "hashes"), partial(_note, told))
        assert told[0] == 0.0
        assert told == sorted(told)
        assert told[-1] == 1.0
    assert len(known) == 2


def _note(told: list[float], _: str, done: float) -> None:
    told.append(done)


def encoded_manifest(files: dict[str, bytes], **records: TensorRecord) -> bytes:
    return Manifest(files, records).encode()


RECORD = TensorRecord("U8", (3,), "0" * 64)
GOOD = encoded_manifest({"config.json": b"{}"}, a=RECORD)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert decode_manifest(GOOD, fingerprint_of(GOOD)) == Manifest({"config.json": b"{}"}, {"a": RECORD})


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_manifest_that_was_changed_is_refused(place: int, change: int) -> None:
    damaged = bytearray(GOOD)
    damaged[place] ^= change
    with pytest.raises(CheckpointError, match="not the one that its fingerprint names"):
        decode_manifest(bytes(damaged), fingerprint_of(GOOD))


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (encoded_manifest({"../config.json": b"{}"}), "a file that no stage needs"),
        (encoded_manifest({}, a=TensorRecord("U9", (3,), "0" * 64)), "unknown type U9"),
        (encoded_manifest({}, a=TensorRecord("U8", (3, -1), "0" * 64)), "malformed"),
        (encoded_manifest({}, a=TensorRecord("U8", (3,), "0" * 63)), "malformed"),
        (b"\x80", "malformed"),
        (b"", "malformed"),
    ],
)
def test_a_manifest_of_no_checkpoint_is_refused(encoded: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        decode_manifest(encoded, fingerprint_of(encoded))


def test_a_tensor_counts_its_bytes() -> None:
    assert TensorRecord("BF16", (3, 5), "0" * 64).num_bytes == torch.zeros(3, 5, dtype=torch.bfloat16).nbytes
