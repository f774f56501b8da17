"""Pickled weights are tensors by name or they are refused in one line; nothing in them is ever run."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.conversion.pickled import find_pickles, load_pickle


class Program:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._mark}",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run_it(
    checkpoint: Callable[[str], Path], tmp_path: Path, is_zip: bool
) -> None:
    file, mark = tmp_path / "pytorch_model.bin", tmp_path / "it-ran"
    (tmp_path / "config.json").write_bytes((checkpoint("llama") / "config.json").read_bytes())
    torch.save({"w": torch.ones(2), "x": Program(mark)}, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"wants to run code \(posix.system\), which is refused") as refusal:
        convert_checkpoint_to_deepspeed(tmp_path, tmp_path / "out", 1)
    assert "\n" not in str(refusal.value)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "the pickle was no danger: this test shows nothing"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([torch.ones(1)], "holds a list, not tensors by name"),
        ({}, "holds no tensors"),
        ({"a": 1}, "a holds a int, not a tensor"),
        ({1: torch.ones(1)}, "holds 1, which is not the name of a tensor"),
        ({"a": torch.ones(2).to_sparse()}, "a is not a plain dense tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a is not a plain dense tensor"),
        (torch.nn.Linear(2, 2), r"wants to run code \(torch.nn.modules.linear.Linear\)"),
    ],
)
def test_what_is_not_tensors_by_name_is_refused(tmp_path: Path, document: object, words: str) -> None:
    torch.save(document, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=words):
        load_pickle(tmp_path / "m.pt")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 and no more", b"no pickle", pickle.dumps(os.system)])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"m\.bin") as refusal:
        load_pickle(tmp_path / "m.bin")
    assert "\n" not in str(refusal.value)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(5000)}, tmp_path / "m.bin")
    data = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_pickle(tmp_path / "m.bin")


def test_tensors_are_mapped_rather_than_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(5000)}, tmp_path / "mapped.bin")
    tensors = load_pickle(tmp_path / "mapped.bin")
    assert "mapped.bin" in Path("/proc/self/maps").read_text()
    assert float(tensors["a"].sum()) == 5000


def test_of_several_files_without_an_index_one_must_be_named(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"2 files of weights and no pytorch_model\.bin\.index\.json; name"):
        find_pickles(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({}, "has no weight_map"),
        ({"a": "../a.bin"}, "names a file outside the checkpoint"),
        ({"a": "a.bin", "b": "b.bin"}, r"lacks 2 of 2 shards, first a\.bin"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, weight_map: dict[str, str], words: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=words):
        find_pickles(tmp_path)
