"""Ranks that start from a converted checkpoint hold and compute what ranks that slice while they load do."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import CheckpointError, open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.conversion.descriptor import read_descriptor
from distllm.engine.conversion.linked import link_converted
from distllm.engine.conversion.rank_checkpoint import open_for_rank
from distllm.engine.distributed.sharding import plan_sharding
from distllm.engine.distributed.shrinking import shrink
from distllm.engine.factory import build_executor
from distllm.engine.hub import resolve
from distllm.engine.loading import build_on_meta, load_config, load_weights
from distllm.engine.served_model import prepare_model
from tests.engine.conftest import MODELS
from tests.engine.conversion.conftest import Converted
from tests.engine.distributed.thread_ranks import ThreadGroup, loading_in_turn, on_every_rank
from tests.engine.test_forward import NUM_BLOCKS, Part, make_stories

Checkpoints = Callable[[str], Path]


def weights_of_rank(path: Path, rank: int, size: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    checkpoint = open_for_rank(path, rank, size)
    model = build_on_meta(checkpoint, load_config(checkpoint), dtype)
    sharding = plan_sharding(model, rank, size)
    shrink(model, sharding)
    loaded: dict[str, Tensor] = load_weights(
        checkpoint, model, dtype, torch.device("cpu"), sharding.parts
    ).state_dict()
    return loaded


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_each_rank_loads_the_bits_that_it_would_slice(
    checkpoint: Checkpoints, converted: Converted, kind: str, size: int
) -> None:
    for rank in range(size):
        sliced = weights_of_rank(checkpoint(kind), rank, size)
        loaded = weights_of_rank(converted(kind, size), rank, size)
        assert loaded.keys() == sliced.keys()
        assert all(torch.equal(loaded[name], sliced[name]) for name in sliced)


@pytest.fixture
def load_in_turn() -> Iterator[None]:
    with loading_in_turn():
        yield


def logits(path: Path, size: int) -> Tensor:
    """Of every token of a sequence, over the whole vocabulary."""
    config = EngineConfig(model=str(path), device="cpu", dtype="float32", max_model_len=128, num_threads=1)
    batch = build_step_tensors([Part(story, 0, 45).chunk() for story in make_stories(1, [45])], range(45))

    def run(group: ThreadGroup) -> Tensor:
        return prepare_model(config, lambda *_: None, group).forward_over(NUM_BLOCKS)(batch)

    return torch.cat(on_every_rank(size, run), dim=-1)


@pytest.mark.usefixtures("load_in_turn")
@pytest.mark.parametrize(
    ("kind", "size"), [("llama", 3), ("llama-odd", 2), ("phi3", 2), ("gpt_oss", 3), ("mixtral", 2)]
)
def test_the_logits_are_those_of_slicing_while_loading_bit_for_bit(
    checkpoint: Checkpoints, converted: Converted, kind: str, size: int
) -> None:
    assert torch.equal(logits(converted(kind, size), size), logits(checkpoint(kind), size))


def test_a_rank_opens_no_file_but_its_own(converted: Converted, tmp_path: Path) -> None:
    path = shutil.copytree(converted("mixtral", 2), tmp_path / "ranks")
    expected = weights_of_rank(path, 1, 2)
    other = path / "tp_00_of_02.safetensors"
    other.write_bytes(bytes(other.stat().st_size))
    found = weights_of_rank(path, 1, 2)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError, match=r"tp_00_of_02\.safetensors"):
        weights_of_rank(path, 0, 2)


def test_weights_of_the_serving_type_stay_views_of_the_ranks_file(converted: Converted) -> None:
    loaded = weights_of_rank(converted("llama", 2), 1, 2)
    address = loaded["model.layers.0.mlp.down_proj.weight"].data_ptr()  # cut across rows: a copy, if it were sliced
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0].split("-") for line in lines if line.endswith("tp_01_of_02.safetensors")]
    assert any(int(start, 16) <= address < int(end, 16) for start, end in mapped)


def test_the_files_serve_a_directory_with_a_config_and_a_tokenizer_of_its_own(
    converted: Converted, tmp_path: Path
) -> None:
    config = json.loads((converted("llama", 2) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    link_converted(read_descriptor(converted("llama", 2)), tmp_path)
    assert resolve(str(tmp_path)) == tmp_path
    for rank in range(2):
        expected = weights_of_rank(converted("llama", 2), rank, 2)
        found = weights_of_rank(tmp_path, rank, 2)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_needs_a_whole_checkpoint_says_how_to_get_one(converted: Converted) -> None:
    with pytest.raises(
        CheckpointError, match=r"put it together first: `distllm convert .* --tensor-parallel-size 1`"
    ):
        open_checkpoint(converted("llama", 2))


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_ranks_is_refused_by_name(converted: Converted, size: int) -> None:
    config = EngineConfig(model=str(converted("llama", 2)), device="cpu", tensor_parallel_size=size)
    words = f"converted for tensor_parallel_size 2, not {size}: give --tensor-parallel-size 2"
    if size == 1:
        with pytest.raises(CheckpointError, match=words):
            build_executor(config, lambda *_: None)
    else:
        with pytest.raises(CheckpointError, match=words):
            open_for_rank(Path(config.model), 0, size)


def test_a_division_that_is_not_the_ranks_is_refused(converted: Converted, tmp_path: Path) -> None:
    path = shutil.copytree(converted("llama", 2), tmp_path / "ranks")
    checkpoint = open_for_rank(path, 0, 2)
    model = build_on_meta(checkpoint, load_config(checkpoint), torch.float32)
    of_the_other = plan_sharding(model, 1, 2)
    shrink(model, of_the_other)
    with pytest.raises(CheckpointError, match=r"was divided in another way; convert it again"):
        load_weights(checkpoint, model, torch.float32, torch.device("cpu"), of_the_other.parts)


def test_a_single_rank_gets_an_ordinary_checkpoint_that_may_be_sliced(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = convert_checkpoint_to_deepspeed(checkpoint("llama"), tmp_path / "one", 1).parent
    for rank in range(2):
        expected = weights_of_rank(checkpoint("llama"), rank, 2)
        found = weights_of_rank(path, rank, 2)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
