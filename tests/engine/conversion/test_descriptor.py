"""DeepSpeed's descriptor: what is written, how it is found, and which field is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.state_dict_factory import SDLoaderFactory

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.conversion.descriptor import choose_size, find_descriptor, read_descriptor
from distllm.engine.hub import ModelNotFound, inspect, resolve
from tests.engine.conversion.conftest import Converted

NAME = "ds_inference_config.json"
FILES = ["tp_00_of_02.safetensors", "tp_01_of_02.safetensors"]


def document_of(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((path / NAME).read_text())
    return document


def test_it_says_what_deepspeed_reads(converted: Converted) -> None:
    path = converted("llama", 2)
    document = document_of(path)
    assert document == {
        "type": "ds_model",
        "version": 1.0,
        "parallelization": "tp",
        "tp_size": 2,
        "base_dir": str(path),
        "checkpoints": FILES,
    }
    assert SDLoaderFactory.get_sd_loader_json(str(path / NAME), None) == document
    assert all((path / file).is_file() for file in document["checkpoints"])


def test_a_start_takes_the_directory_the_file_or_the_object(converted: Converted) -> None:
    path = converted("llama", 2)
    for source in (path, str(path), path / NAME, document_of(path)):
        found = read_descriptor(source)
        assert (found.directory, list(found.files), found.tp_size) == (path, FILES, 2)
    assert resolve(str(path)) == resolve(str(path / NAME)) == path


def test_files_are_found_where_a_directory_was_moved_and_beyond_where_a_descriptor_was(
    converted: Converted, tmp_path: Path
) -> None:
    moved = shutil.copytree(converted("llama", 2), tmp_path / "moved")
    assert read_descriptor(moved).directory == moved
    (tmp_path / "elsewhere.json").write_text((converted("llama", 2) / NAME).read_text())
    assert read_descriptor(tmp_path / "elsewhere.json").directory == converted("llama", 2)


def test_an_object_with_whole_paths_needs_no_base_dir(converted: Converted) -> None:
    path = converted("llama", 2)
    document = document_of(path) | {"checkpoints": [str(path / file) for file in FILES]}
    del document["base_dir"]
    assert read_descriptor(document).directory == path


def test_deepspeeds_object_of_checkpoints_is_understood(converted: Converted) -> None:
    path = converted("llama", 2)
    document = document_of(path) | {"checkpoints": {"tp": FILES, "non_tp": []}}
    assert read_descriptor(document).files == tuple(FILES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parallelization": "pp"}, "parallelization must be 'tp', not 'pp'"),
        ({"parallelization": None}, "parallelization must be 'tp', not None"),
        ({"tp_size": 3}, "tp_size is 3, and checkpoints lists 2 files"),
        ({"checkpoints": []}, "checkpoints must list one safetensors file a rank"),
        ({"checkpoints": "tp_00.safetensors"}, "checkpoints must list one safetensors file a rank"),
        (
            {"checkpoints": {"tp": FILES, "non_tp": ["non-tp.pt"]}},
            "checkpoints must list one safetensors file a rank",
        ),
        ({"checkpoints": ["tp_00_00.pt", "tp_01_00.pt"]}, r"names tp_00_00\.pt, which is not a safetensors file"),
        ({"checkpoints": [*FILES[:1], "x.safetensors"]}, r"checkpoints names x\.safetensors, which is not in"),
        ({"checkpoints": FILES[::-1]}, "checkpoints are not those that .* names, in its order"),
        ({"base_dir": None}, "checkpoint_dict has no base_dir: name the directory"),
        (
            {"base_dir": "/no/such/place"},
            r"names tp_00_of_02\.safetensors, which is not in /no/such/place",
        ),
    ],
)
def test_a_wrong_field_is_named(converted: Converted, change: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as refusal:
        read_descriptor(document_of(converted("llama", 2)) | change)
    assert "\n" not in str(refusal.value)


def test_a_directory_of_any_other_kind_has_no_descriptor(tmp_path: Path) -> None:
    assert find_descriptor(tmp_path) is None
    assert choose_size(tmp_path, None) is None
    assert choose_size(tmp_path, 4) == 4


def test_the_number_of_ranks_is_the_descriptors_and_no_other(converted: Converted) -> None:
    path = converted("llama", 3)
    assert choose_size(path, None) == choose_size(path, 3) == 3
    with pytest.raises(CheckpointError, match="for tensor_parallel_size 3, not 2: give --tensor-parallel-size 3"):
        choose_size(path, 2)


def test_a_file_that_is_no_descriptor_is_no_model(converted: Converted) -> None:
    path = converted("llama", 2)
    with pytest.raises(ModelNotFound, match="is a file; give the checkpoint's directory"):
        resolve(str(path / FILES[0]))
    with pytest.raises(ModelNotFound, match="parallelization must be 'tp'"):
        resolve(str(path / "config.json"))


def test_a_plan_sees_the_whole_model(converted: Converted) -> None:
    found = inspect(str(converted("gpt_oss", 2)))
    whole = inspect(str(converted("gpt_oss", 1)))
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.tensors.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in whole.tensors.items()
    }
