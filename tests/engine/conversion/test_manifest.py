"""The manifest knows every file: sizes are looked at with every start, contents when they are verified."""

import json
import shutil
from pathlib import Path

import pytest

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.conversion.manifest import read_manifest, verify
from distllm.engine.conversion.rank_checkpoint import open_for_rank
from distllm.engine.hub import ModelNotFound, resolve
from tests.engine.conversion.conftest import Converted

FILE = "tp_01_of_02.safetensors"


@pytest.fixture
def ranks(converted: Converted, tmp_path: Path) -> Path:
    """A converted checkpoint to spoil."""
    return shutil.copytree(converted("llama", 2), tmp_path / "ranks")


def test_it_lists_every_other_file_and_they_verify(converted: Converted) -> None:
    path = converted("llama", 2)
    listed = read_manifest(path).files
    assert {*listed, "manifest.json"} == {file.name for file in path.iterdir()}
    num_read = 0

    def count(num_bytes: int) -> None:
        nonlocal num_read
        num_read += num_bytes

    assert verify(path, count).tp_size == 2
    assert num_read == sum(record.num_bytes for record in listed.values())


@pytest.mark.parametrize("name", [FILE, "config.json", "ds_inference_config.json"])
def test_one_other_bit_anywhere_is_found_by_name(ranks: Path, name: str) -> None:
    data = bytearray((ranks / name).read_bytes())
    data[-2] ^= 1
    (ranks / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name} is not what was written: its SHA-256 differs"):
        verify(ranks)


def test_corrupted_weights_are_not_put_together(ranks: Path, tmp_path: Path) -> None:
    data = bytearray((ranks / FILE).read_bytes())
    data[-1] ^= 128
    (ranks / FILE).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{FILE} is not what was written"):
        convert_checkpoint_to_deepspeed(ranks, tmp_path / "back", 1)
    assert not (tmp_path / "back").exists()


def test_a_start_refuses_a_file_of_another_size(ranks: Path) -> None:
    with (ranks / FILE).open("ab") as file:
        file.write(b"x")
    words = rf"{FILE} has \d+ bytes, manifest.json says \d+; fetch or convert it again"
    with pytest.raises(ModelNotFound, match=words):
        resolve(str(ranks))
    with pytest.raises(CheckpointError, match=words):
        open_for_rank(ranks, 1, 2)
    open_for_rank(ranks, 0, 2)


def test_a_directory_without_its_manifest_is_half_a_checkpoint(ranks: Path) -> None:
    (ranks / "manifest.json").unlink()
    for attempt in (lambda: resolve(str(ranks)), lambda: open_for_rank(ranks, 0, 2), lambda: verify(ranks)):
        with pytest.raises(
            (CheckpointError, ModelNotFound), match=r"has no manifest\.json: it is half a checkpoint"
        ):
            attempt()


def test_a_file_that_is_gone_is_named(ranks: Path) -> None:
    (ranks / "generation_config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"lacks generation_config\.json, which its manifest\.json lists"):
        resolve(str(ranks))


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}'])
def test_a_manifest_that_cannot_be_read_is_named(ranks: Path, text: str) -> None:
    (ranks / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        read_manifest(ranks)


def test_a_file_that_the_manifest_does_not_know_is_no_ranks(ranks: Path) -> None:
    document = json.loads((ranks / "manifest.json").read_text())
    del document["files"][FILE]
    (ranks / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=f"does not know {FILE}"):
        open_for_rank(ranks, 1, 2)
