"""A broken checkpoint is refused with one line that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distllm.engine.checkpoint import CheckpointError, open_checkpoint


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two shards with an index."""
    save_file({"a": torch.ones(4, 8, dtype=torch.bfloat16)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(3), "c": torch.ones(2, 2)}, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


def test_headers_of_all_shards_are_read(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    assert {name: (t.dtype, t.shape) for name, t in checkpoint.tensors.items()} == {
        "a": ("BF16", (4, 8)),
        "b": ("F32", (3,)),
        "c": ("F32", (2, 2)),
    }
    assert checkpoint.num_bytes == 64 + 12 + 16
    assert len(checkpoint.shards) == 2


def lose_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def break_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": ')


def listed_config(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def quantize(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))


def lose_shard(directory: Path) -> None:
    (directory / "model-00002-of-00002.safetensors").unlink()


def cut_shard(directory: Path) -> None:
    shard = directory / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def cut_header(directory: Path) -> None:
    shard = directory / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:20])


def empty_shard(directory: Path) -> None:
    (directory / "model-00001-of-00002.safetensors").write_bytes(b"")


def lengthen_shard(directory: Path) -> None:
    shard = directory / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes() + b"\0")


def scramble_header(directory: Path) -> None:
    shard = directory / "model-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    shard.write_bytes(bytes(content))


def strange_dtype(directory: Path) -> None:
    shard = directory / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"BF16"', b'"Q4_K"'))


def shape_of_words(directory: Path) -> None:
    shard = directory / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b"[4,8]", b'["x"]'))


def change_header(directory: Path, old: bytes, new: bytes) -> None:
    """Harm that leaves every length as it was."""
    shard = directory / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    assert old in content
    assert len(old) == len(new)
    shard.write_bytes(content.replace(old, new))


def misplace_a_tensor(directory: Path) -> None:
    change_header(directory, b'"data_offsets":[12,28]', b'"data_offsets":[10,26]')


def swap_the_ends_of_a_tensor(directory: Path) -> None:
    change_header(directory, b'"data_offsets":[12,28]', b'"data_offsets":[28,12]')


def lose_the_offsets_of_a_tensor(directory: Path) -> None:
    change_header(directory, b'"data_offsets":[12,28]', b'"data_offsetz":[12,28]')


def point_to_a_shard(directory: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (directory / "model-00002-of-00002.safetensors").write_bytes(pointer)


def point_to_the_config(directory: Path) -> None:
    (directory / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")


def leave_the_directory(directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


def empty_index(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text("{}")


def only_pickles(directory: Path) -> None:
    for file in directory.glob("model*"):
        file.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"x")


def no_weights(directory: Path) -> None:
    for file in directory.glob("model*"):
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lose_config, "has no config.json"),
        (break_config, "config.json cannot be read"),
        (listed_config, "must hold a JSON object"),
        (quantize, "is quantized as bitsandbytes; known are gptq, awq, compressed-tensors and fp8"),
        (lose_shard, "lacks 1 of 2 shards, first model-00002-of-00002.safetensors"),
        (cut_shard, "model-00001-of-00002.safetensors is cut short"),
        (cut_header, "is cut short or not a safetensors file"),
        (empty_shard, "is cut short or not a safetensors file"),
        (lengthen_shard, "is too long"),
        (scramble_header, "cannot be read"),
        (strange_dtype, "tensor a has the unknown type Q4_K"),
        (shape_of_words, "has a malformed header"),
        (misplace_a_tensor, "has a malformed header: c is misplaced; fetch it again"),
        (swap_the_ends_of_a_tensor, "has a malformed header: c is misplaced; fetch it again"),
        (lose_the_offsets_of_a_tensor, "has a malformed header; fetch it again"),
        (point_to_a_shard, "00002.safetensors is a git-lfs pointer, not the file itself; run `git lfs pull`"),
        (point_to_the_config, "config.json is a git-lfs pointer"),
        (leave_the_directory, "names a file outside the checkpoint"),
        (empty_index, "has no weight_map"),
        (only_pickles, "has no safetensors files; convert"),
        (no_weights, "has no model.safetensors"),
    ],
)
def test_harm_is_named_in_one_line(directory: Path, harm: Callable[[Path], None], words: str) -> None:
    harm(directory)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_file_needs_no_index(directory: Path) -> None:
    shutil.move(directory / "model-00001-of-00002.safetensors", directory / "model.safetensors")
    (directory / "model.safetensors.index.json").unlink()
    assert list(open_checkpoint(directory).tensors) == ["a"]
