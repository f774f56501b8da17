"""What a decoder can be cut into, and what forbids it: each reason by its words, with the model's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import FuyuConfig, FuyuForCausalLM, PreTrainedModel

from distllm.engine.checkpoint import CheckpointError, open_checkpoint
from distllm.engine.loading import build_on_meta, load_config
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.decoder_parts import find_decoder_parts
from tests.engine.pipeline.stages import config_of, load_stage

Build = Callable[[str], PreTrainedModel]


@pytest.fixture
def build(checkpoint: Callable[[str], Path]) -> Build:
    def make(kind: str) -> PreTrainedModel:
        stored = open_checkpoint(checkpoint(kind))
        return build_on_meta(stored, load_config(stored), torch.float32)

    return make


def test_what_is_outside_of_the_layers_is_found_by_when_it_runs(build: Build) -> None:
    parts = find_decoder_parts(build("opt"))
    prefix = "model.decoder."
    assert parts.layers == tuple(f"{prefix}layers.{number}" for number in range(3))
    embeddings = {f"{prefix}embed_tokens.weight", "lm_head.weight"}
    assert parts.before == {f"{prefix}project_in.weight", f"{prefix}embed_positions.weight", *embeddings}
    norm = {f"{prefix}final_layer_norm.{name}" for name in ("weight", "bias")}
    assert parts.after == {f"{prefix}project_out.weight", *norm, *embeddings}
    assert parts.width == 64


def test_stages_share_no_more_than_what_is_tied(build: Build) -> None:
    for kind in ("llama", "mistral", "gpt2", "deepseek_v3", "gpt_oss"):
        names = set(build(kind).state_dict())
        parts = find_decoder_parts(build(kind))
        first, second, third = (parts.held_by(LayerRange(begin, begin + 1, 3), names) for begin in range(3))
        assert first | second | third == names
        assert first & third == parts.before & parts.after
        assert not second & (first | third)
        assert bool(first & third) == (kind in ("llama", "gpt2"))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    return layers


def hand_on_more(model: PreTrainedModel) -> None:
    for module in (*layers_of(model), model.get_submodule("model.norm")):
        module.register_forward_pre_hook(lambda _, args: (args[0][0] if isinstance(args[0], tuple) else args[0],))
    for layer in layers_of(model):
        layer.register_forward_hook(lambda _, __, output: (output, output + 1))


def give_embeddings_to_layers(model: PreTrainedModel) -> None:
    """As models do whose every layer mixes in the embedding."""
    kept: list[Any] = []
    layers_of(model)[0].register_forward_pre_hook(lambda _, args: kept.append(args[0]))

    def mix_in(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "embedded": [kept[-1]]}

    layers_of(model)[2].register_forward_pre_hook(mix_in, with_kwargs=True)


def give_tokens_to_layers(model: PreTrainedModel) -> None:
    kept: list[Any] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: kept.append(args[0]))

    def pass_on(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "tokens": {"ids": kept[-1]}}

    layers_of(model)[1].register_forward_pre_hook(pass_on, with_kwargs=True)


def change_between(model: PreTrainedModel) -> None:
    layers_of(model)[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))


def add_what_is_not_run(model: PreTrainedModel) -> None:
    model.register_parameter("lost", nn.Parameter(torch.empty(3, device="meta")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hand_on_more, "its layers hand on more than hidden states"),
        (give_embeddings_to_layers, "its layers read tokens or embeddings beside"),
        (give_tokens_to_layers, "its layers read tokens or embeddings beside"),
        (change_between, "something changes hidden states between its layers"),
        (add_what_is_not_run, "which stage needs lost cannot be told"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused_by_name(
    build: Build, change: Callable[[PreTrainedModel], None], words: str
) -> None:
    model = build("mistral")
    change(model)
    with pytest.raises(CheckpointError, match=rf"MistralForCausalLM cannot be served: it cannot be cut .*{words}"):
        find_decoder_parts(model)


def test_a_model_that_is_served_whole_may_be_no_model_of_stages(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    FuyuForCausalLM(FuyuConfig(vocab_size=131, max_position_embeddings=128, **shape)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="FuyuForCausalLM cannot be served: it cannot be cut into stages"):
        load_stage(config_of(tmp_path), 0, 2)
