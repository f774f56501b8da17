"""To the ranks and back: the same bits under the same names, whatever files they came from."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import distllm
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.conversion.rank_checkpoint import Cut
from distllm.engine.conversion.sources import join_parts
from distllm.engine.distributed.division import divide
from tests.engine.conftest import MODELS
from tests.engine.conversion.conftest import Converted

WEIGHTS = "model.safetensors"
Checkpoints = Callable[[str], Path]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def weights(directory: Path) -> bytes:
    return (directory / WEIGHTS).read_bytes()


def with_weights(source: Path, to: Path, write: Callable[[Mapping[str, Tensor], Path], object]) -> Path:
    """A copy of a checkpoint whose tensors `write` puts into the copy's directory."""
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("*.safetensors"))
    write(load_file(source / WEIGHTS), to)
    return to


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_the_way_back_gives_the_same_file(
    checkpoint: Checkpoints, converted: Converted, tmp_path: Path, kind: str, size: int
) -> None:
    convert_checkpoint_to_deepspeed(converted(kind, size), tmp_path / "back", 1)
    assert weights(tmp_path / "back") == weights(checkpoint(kind))
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (checkpoint(kind) / name).read_bytes()


@pytest.mark.parametrize("kind", ["llama-odd", "mixtral", "gpt2"])
def test_ranks_may_become_more_or_fewer_without_a_step_between(
    checkpoint: Checkpoints, converted: Converted, tmp_path: Path, kind: str
) -> None:
    descriptor = convert_checkpoint_to_deepspeed(converted(kind, 2) / "ds_inference_config.json", tmp_path / "3", 3)
    for file in json.loads(descriptor.read_text())["checkpoints"]:
        assert (tmp_path / "3" / file).read_bytes() == (converted(kind, 3) / file).read_bytes()


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_every_pattern_of_bits_survives_even_those_that_are_no_number(
    checkpoint: Checkpoints, tmp_path: Path, kind: str
) -> None:
    generator = torch.Generator().manual_seed(0)

    def write(tensors: Mapping[str, Tensor], to: Path) -> None:
        noise = {
            name: torch.randint(-(2**15), 2**15, tensor.shape, dtype=torch.int16, generator=generator)
            for name, tensor in tensors.items()
        }
        save_file({name: bits.view(torch.bfloat16) for name, bits in noise.items()}, to / WEIGHTS)

    source = with_weights(checkpoint(kind), tmp_path / "source", write)
    assert any(tensor.isnan().any() for tensor in load_file(source / WEIGHTS).values())
    convert_checkpoint_to_deepspeed(source, tmp_path / "ranks", 3)
    convert_checkpoint_to_deepspeed(tmp_path / "ranks", tmp_path / "back", 1)
    found, expected = load_file(tmp_path / "back" / WEIGHTS), load_file(source / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(bits_of(found[name]), bits_of(expected[name])) for name in expected)


def as_bin(tensors: Mapping[str, Tensor], to: Path) -> None:
    torch.save(dict(tensors), to / "pytorch_model.bin")


def as_sharded_bin(tensors: Mapping[str, Tensor], to: Path) -> None:
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
    for shard, held in shards.items():
        torch.save({name: tensors[name] for name in held}, to / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (to / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def as_pt_beside_other_things(tensors: Mapping[str, Tensor], to: Path) -> None:
    torch.save({"step": 7, "model": dict(tensors)}, to / "last.pt")


def as_file_of_an_old_torch(tensors: Mapping[str, Tensor], to: Path) -> None:
    torch.save(dict(tensors), to / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def as_transposed_views(tensors: Mapping[str, Tensor], to: Path) -> None:
    views = {name: tensor.T.contiguous().T if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    torch.save(views, to / "pytorch_model.bin")


@pytest.mark.parametrize(
    "write", [as_bin, as_sharded_bin, as_pt_beside_other_things, as_file_of_an_old_torch, as_transposed_views]
)
@pytest.mark.parametrize("kind", ["llama-odd", "gpt2"])
def test_pickled_weights_become_the_same_files_as_safetensors(
    checkpoint: Checkpoints,
    converted: Converted,
    tmp_path: Path,
    kind: str,
    write: Callable[[Mapping[str, Tensor], Path], None],
) -> None:
    source = with_weights(checkpoint(kind), tmp_path / "source", write)
    descriptor = convert_checkpoint_to_deepspeed(source, tmp_path / "ranks", 2)
    for file in json.loads(descriptor.read_text())["checkpoints"]:
        assert (tmp_path / "ranks" / file).read_bytes() == (converted(kind, 2) / file).read_bytes()
    assert not list((tmp_path / "ranks").glob("*pytorch*"))


def test_sharded_safetensors_become_one_checkpoint(checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(checkpoint("mixtral")).save_pretrained(source, max_shard_size="300KB")
    assert len(list(source.glob("model-*.safetensors"))) > 2
    convert_checkpoint_to_deepspeed(source, tmp_path / "ranks", 2)
    convert_checkpoint_to_deepspeed(tmp_path / "ranks", tmp_path / "back", 1)
    assert weights(tmp_path / "back") == weights(checkpoint("mixtral"))


def test_the_package_offers_it_under_its_name() -> None:
    assert distllm.convert_checkpoint_to_deepspeed is convert_checkpoint_to_deepspeed


def test_one_file_of_weights_is_read_with_the_config_beside_it(checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = with_weights(checkpoint("llama"), tmp_path / "source", as_bin)
    save_file({"other": torch.ones(2)}, source / WEIGHTS)
    convert_checkpoint_to_deepspeed(source / "pytorch_model.bin", tmp_path / "back", 1)
    assert weights(tmp_path / "back") == weights(checkpoint("llama"))


def test_what_lies_beside_the_weights_goes_along_and_weights_do_not(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint("llama"), tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    beside = {
        "tokenizer.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    }
    for name, text in beside.items():
        (source / name).write_text(text)
    for name in ("optimizer.pt", "model.onnx", "pytorch_model.bin.index.json", ".hidden"):
        (source / name).write_text("weights, or of weights")
    convert_checkpoint_to_deepspeed(source, tmp_path / "out", 2)
    kept = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    own = {"ds_inference_config.json", "manifest.json", "tp_00_of_02.safetensors", "tp_01_of_02.safetensors"}
    assert kept == {"config.json", "generation_config.json", *beside, *own}
    assert all((tmp_path / "out" / name).read_text() == text for name, text in beside.items())


@given(length=st.integers(4, 40), size=st.integers(2, 4), dim=st.integers(0, 1), overlap=st.integers(0, 3))
@settings(deadline=None)
def test_parts_that_overlap_or_are_uneven_are_put_together(length: int, size: int, dim: int, overlap: int) -> None:
    shape = (length, 3) if dim == 0 else (3, length)
    whole = torch.arange(3 * length).reshape(shape)
    spans = [((part.start, min(length, part.stop + overlap)),) for part in divide(length, size)]
    cuts = [Cut(dim, span, shape) for span in spans]
    parts = [whole.narrow(dim, start, stop - start) for ((start, stop),) in spans]
    assert torch.equal(join_parts("w", cuts, parts), whole)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"),
            r"lacks 1 tensors, first .*1\.mlp\.down",
        ),
        (
            lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ][:-1].clone()}),
            r"q_proj\.weight has shape \(63, 64\), config\.json asks for \(64, 64\)",
        ),
    ],
)
def test_what_could_not_be_served_is_not_converted(
    checkpoint: Checkpoints,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    words: str,
    size: int,
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint("llama"), source)
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, source / WEIGHTS)
    with pytest.raises(CheckpointError, match=words):
        convert_checkpoint_to_deepspeed(source, tmp_path / "ranks", size)
    assert not (tmp_path / "ranks").exists()
