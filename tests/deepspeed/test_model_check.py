"""A model that was changed by hand is refused by the name of what was changed; any other is taken."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from distllm.deepspeed.model_check import check_model
from distllm.deepspeed.refusal import InvalidOption
from tests.deepspeed.conftest import make_decoder
from tests.engine.conftest import MODELS, make_model


class DoubledLinear(nn.Linear):
    """A Linear in name and shape, with another result."""

    def forward(self, rows: Tensor) -> Tensor:
        return 2 * super().forward(rows)


def _halve(*seen: Any) -> Any:
    return seen[-1]


def replace_linear(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj = DoubledLinear(256, 256, bias=False)


def replace_activation(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = nn.ReLU()


def hook_forward(model: Any) -> None:
    model.model.layers[0].register_forward_hook(_halve)


def hook_before_forward(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_pre_hook(_halve)


def patch_forward(model: Any) -> None:
    layer = model.model.layers[0]

    @functools.wraps(layer.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return kwargs

    layer.forward = forward


def change_epsilon(model: Any) -> None:
    model.model.norm.variance_epsilon = 0.5


def add_bias(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = nn.Linear(256, 512, bias=True)


def narrow_layer(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = nn.Linear(256, 256, bias=False)


def cut_layer(model: Any) -> None:
    del model.model.layers[1]


def add_layer(model: Any) -> None:
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))


def quantize(model: Any) -> None:
    del model.model.layers[0].self_attn.q_proj
    quantized = torch.ao.nn.quantized.dynamic.Linear
    model.model.layers[0].self_attn.q_proj = quantized.__new__(quantized)
    nn.Module.__init__(model.model.layers[0].self_attn.q_proj)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            replace_linear,
            r"model\.layers\.0\.self_attn\.q_proj is a .*\.DoubledLinear, and by its config a Linear;",
        ),
        (replace_activation, r"model\.layers\.0\.mlp\.act_fn is a ReLU, and by its config a SiLU"),
        (hook_forward, r"model\.layers\.0 has a forward hook;"),
        (hook_before_forward, r"model\.layers\.1\.mlp has a forward hook;"),
        (patch_forward, r"model\.layers\.0 has a forward of its own;"),
        (change_epsilon, r"model\.norm has variance_epsilon 0\.5, and by its config 1e-06;"),
        (add_bias, r"model\.layers\.0\.mlp\.up_proj\.bias is not in its config;"),
        (narrow_layer, r"model\.layers\.0\.mlp\.up_proj has out_features 256, and by its config 512;"),
        (cut_layer, r"model\.layers\.1 is missing;"),
        (add_layer, r"model\.layers\.2, a LlamaDecoderLayer, is not in its config;"),
        (
            quantize,
            r"model\.layers\.0\.self_attn\.q_proj is a torch\.ao\.nn\.quantized\..*Linear, and by its config",
        ),
    ],
)
def test_a_change_by_hand_is_refused_by_the_name_of_the_module(change: Callable[[Any], None], words: str) -> None:
    model = make_decoder()
    change(model)
    with pytest.raises(InvalidOption, match=f"^model was changed by hand: {words}") as caught:
        check_model(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_as_its_config_says_is_taken_after_it_has_been_used(kind: str) -> None:
    model = make_model(kind)
    check_model(model)
    model(torch.tensor([[5, 6, 7]]), output_hidden_states=True)  # transformers hooks layers for that
    model.train().enable_input_require_grads()
    check_model(model)


def test_a_loaded_pruned_or_resized_model_is_taken_where_its_config_follows(tmp_path: Path) -> None:
    make_decoder().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    check_model(model)
    model.resize_token_embeddings(2600)
    del model.model.layers[1]
    model.config.num_hidden_layers = 1
    check_model(model.half())


def test_hooks_of_accelerate_that_move_tensors_change_nothing() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = make_decoder()
    hooks.add_hook_to_module(model.model.layers[0], hooks.AlignDevicesHook(execution_device="cpu"))
    check_model(model)


def test_a_config_from_which_nothing_can_be_built_is_refused() -> None:
    model = make_decoder()
    model.config.hidden_act = "no such function"
    with pytest.raises(InvalidOption, match=r"^model cannot be built from its config, as the ranks would: "):
        check_model(model)
