"""A checkpoint_dict that names one file a rank: each rank starts from its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.engine import InferenceEngine
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.source import ModelDirectory
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from tests.deepspeed.conftest import make_decoder
from tests.engine.conversion.test_serving import weights_of_rank


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of make_decoder()'s model for two ranks."""
    path = tmp_path_factory.mktemp("model")
    make_decoder().save_pretrained(path / "whole")
    return convert_checkpoint_to_deepspeed(path / "whole", path / "ranks", 2)


@pytest.mark.parametrize("is_object", [False, True])
def test_every_rank_has_its_part_for_a_model_without_weights(
    descriptor: Path, tokenizer: Any, is_object: bool
) -> None:
    given = json.loads(descriptor.read_text()) if is_object else str(descriptor)
    config = DeepSpeedConfig(tensor_parallel_size=2, checkpoint_dict=given)
    source = ModelDirectory.open(make_decoder().to("meta"), tokenizer, config)
    for rank in range(2):
        expected = weights_of_rank(descriptor.parent.parent / "whole", rank, 2)
        found = weights_of_rank(source.path, rank, 2)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    source.close()
    assert all(path.is_file() for path in descriptor.parent.iterdir())


def test_the_descriptor_of_a_directory_that_was_moved_finds_its_files(
    descriptor: Path, tokenizer: Any, tmp_path: Path
) -> None:
    moved = (descriptor.parent.parent / "ranks").rename(tmp_path / "moved")
    config = DeepSpeedConfig(tensor_parallel_size=2, checkpoint_dict=str(moved / descriptor.name))
    assert config.checkpoint_dict is not None
    assert config.checkpoint_dict["base_dir"] == str(moved)
    ModelDirectory.open(make_decoder().to("meta"), tokenizer, config).close()
    moved.rename(descriptor.parent)


def test_some_of_the_files_are_refused(descriptor: Path, tokenizer: Any) -> None:
    document = json.loads(descriptor.read_text())
    config = DeepSpeedConfig(checkpoint_dict=document | {"checkpoints": document["checkpoints"][:1]})
    with pytest.raises(InvalidOption, match=r"checkpoint_dict must list all files that ds_inference_config\.json"):
        ModelDirectory.open(make_decoder().to("meta"), tokenizer, config)


def test_another_number_of_ranks_is_refused_by_name(descriptor: Path, tokenizer: Any) -> None:
    config = DeepSpeedConfig(tensor_parallel_size=3, checkpoint_dict=str(descriptor))
    with pytest.raises(CheckpointError, match="converted for tensor_parallel_size 2, not 3"):
        InferenceEngine(make_decoder().to("meta"), config, tokenizer)


def test_an_engine_runs_from_it(descriptor: Path, tokenizer: Any) -> None:
    texts = []
    for model, checkpoint in ((make_decoder().to("meta"), str(descriptor)), (make_decoder(), None)):
        config = DeepSpeedConfig(tensor_parallel_size=2, checkpoint_dict=checkpoint)
        with InferenceEngine(model, config, tokenizer) as engine:
            assert engine.info.num_ranks == 2
            texts.append(engine.generate("Once upon a time", max_new_tokens=12, do_sample=False))
    assert texts[0] == texts[1]
