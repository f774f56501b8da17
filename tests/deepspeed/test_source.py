"""Every kind of decoder in memory is loaded from shared memory, tensor for tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer, LlamaModel

from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.source import ModelDirectory
from distllm.engine.checkpoint import open_checkpoint
from distllm.engine.loading import build_on_meta, load_config, load_weights
from tests.deepspeed.conftest import make_decoder
from tests.engine.conftest import MODELS, make_model


def load(path: Path) -> Any:
    checkpoint = open_checkpoint(path)
    model = build_on_meta(checkpoint, load_config(checkpoint), torch.float32)
    return load_weights(checkpoint, model, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("kind", MODELS)
def test_a_decoder_in_memory_is_loaded_as_it_is(kind: str, tokenizer: Any) -> None:
    model = make_model(kind)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = ModelDirectory.open(model, tokenizer, DeepSpeedConfig())
    loaded = load(source.path).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert not any(file.suffix == ".safetensors" and not file.is_symlink() for file in source.path.iterdir())
    source.close()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_dict_gives_the_weights_in_place_of_a_model_without_any(
    tokenizer: Any, tmp_path: Path
) -> None:
    model = make_decoder()
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    config = DeepSpeedConfig(checkpoint_dict={"type": "ds_model", "checkpoints": shards, "base_dir": str(tmp_path)})
    source = ModelDirectory.open(make_decoder().to("meta"), tokenizer, config)
    loaded = load(source.path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    source.close()


def test_a_released_model_is_on_the_meta_device_and_its_directory_gone(tokenizer: Any) -> None:
    model = make_decoder()
    source = ModelDirectory.open(model, tokenizer, DeepSpeedConfig())
    source.release()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not source.path.exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (3, "model must be a transformers model, a path or a name, not a int"),
        (torch.nn.Linear(2, 2), "model must be a transformers model, a path or a name, not a Linear"),
        (
            LlamaModel(make_decoder().config),
            "model is a LlamaModel, but its config stands for LlamaForCausalLM, which is what the ranks build",
        ),
        (make_decoder().to("meta"), r"model cannot be taken over: .* is on the meta device"),
    ],
)
def test_what_the_ranks_could_not_run_is_refused_in_one_line(model: Any, words: str, tokenizer: Any) -> None:
    with pytest.raises(InvalidOption, match=f"^{words}") as caught:
        ModelDirectory.open(model, tokenizer, DeepSpeedConfig())
    assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_anywhere_is_refused() -> None:
    with pytest.raises(InvalidOption, match="tokenizer is missing, and the model's own place has none: give one"):
        ModelDirectory.open(make_decoder(), None, DeepSpeedConfig())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            lambda right: "a/path",
            r"must be a tokenizer .*, not a str: give AutoTokenizer\.from_pretrained of that path",
        ),
        (lambda right: right.backend_tokenizer, r"must be .*, not a Tokenizer: give PreTrainedTokenizerFast\("),
        (lambda right: object(), r"must be a tokenizer of transformers, not a object: give one that AutoTokenizer"),
        (
            lambda right: ByT5Tokenizer(),
            r"is a ByT5Tokenizer, and cannot be served: what it saves holds no tokenizer",
        ),
    ],
)
def test_what_is_no_tokenizer_that_can_be_served_is_refused_in_one_line(
    wrong: Callable[[Any], Any], words: str, tokenizer: Any
) -> None:
    with pytest.raises(InvalidOption, match=f"^tokenizer {words}") as caught:
        ModelDirectory.open(make_decoder(), wrong(tokenizer), DeepSpeedConfig())
    assert "\n" not in str(caught.value)
    assert "distllm-model-" not in str(caught.value)


def test_a_wrong_name_in_a_policy_is_found_before_anything_starts(tokenizer: Any) -> None:
    config = DeepSpeedConfig(injection_policy={"LlamaDecoderLayer": ["self_attn.out_proj", "mlp.down_proj"]})
    with pytest.raises(
        InvalidOption, match=r"injection_policy .*no linear layer self_attn\.out_proj; did you mean"
    ):
        ModelDirectory.open(make_decoder(), tokenizer, config)
