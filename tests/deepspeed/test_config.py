"""DeepSpeedConfig: DeepSpeed's own names, each honoured, harmless, or refused with the reason."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distllm.deepspeed import DeepSpeedConfig, InvalidOption
from distllm.deepspeed.deepspeed_fields import NESTED, RENAMED, UNUSED, Refused
from distllm.engine.quantization.config import QuantizationConfig


def deepspeed_names() -> set[str]:
    """The names of DeepSpeed's own fields and their aliases."""
    from deepspeed.inference.config import DeepSpeedInferenceConfig

    fields = DeepSpeedInferenceConfig.model_fields
    return {*fields, *(field.alias for field in fields.values() if field.alias)}


def test_every_field_of_deepspeeds_own_config_has_its_place_here() -> None:
    parameters = set(DeepSpeedConfig.__init__.__annotations__)
    assert deepspeed_names() <= {*parameters, *RENAMED, *NESTED, *UNUSED, "quant"}


def test_the_issues_fields_are_kept_and_frozen() -> None:
    config = DeepSpeedConfig(
        tensor_parallel_size=2,
        dtype=torch.float16,
        replace_with_kernel_inject=True,
        enable_cuda_graph=True,
        checkpoint_dict={"checkpoints": ["a.safetensors"], "base_dir": "/x"},
    )
    assert (config.tensor_parallel_size, config.dtype, config.enable_cuda_graph) == (2, "float16", True)
    assert config.checkpoint_dict == {"checkpoints": ("a.safetensors",), "base_dir": "/x"}
    with pytest.raises(FrozenInstanceError):
        config.tensor_parallel_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"mp_size": 2}, "tensor_parallel_size", 2),
        ({"tensor_parallel": {"tp_size": 4}}, "tensor_parallel_size", 4),
        ({"tp": {"tp_size": 4, "enabled": True}}, "tensor_parallel_size", 4),
        ({"kernel_inject": False}, "replace_with_kernel_inject", False),
        ({"max_tokens": 99}, "max_out_tokens", 99),
        ({"dtype": torch.half}, "dtype", "float16"),
        ({"dtype": "bf16"}, "dtype", "bfloat16"),
        ({"dtype": "torch.float32"}, "dtype", "float32"),
        ({"quant": {"weight": {"num_bits": 4}}}, "quantization", QuantizationConfig(bits=4, group_size=32)),
        ({"quant": {"enabled": False}}, "quantization", None),
        ({"quant": {"activation": {"enabled": False}, "qkv": {}}}, "quantization", QuantizationConfig(bits=8)),
        ({"quant": None}, "quantization", None),
        ({"use_quantization": True}, "quantization", QuantizationConfig(bits=8)),
        ({"mp_size": 2, "tp_size": 2, "tensor_parallel_size": 2}, "tensor_parallel_size", 2),
        ({"use_quantization": False}, "quantization", None),
        ({"quantization_config": {}}, "quantization", QuantizationConfig(bits=8)),
        (
            {"quantization_config": {"bits": 8, "group_size": 128, "mlp_extra_grouping": True}},
            "quantization",
            QuantizationConfig(bits=8, group_size=128, mlp_extra_grouping=True),
        ),
        ({"injection_policy": {nn.Linear: ["a.b"]}}, "injection_policy", {"Linear": ("a.b",)}),
        ({"injection_dict": {"Block": ("a.b", "c.d")}}, "injection_policy", {"Block": ("a.b", "c.d")}),
    ],
)
def test_deepspeeds_other_names_mean_the_same(given: dict[str, Any], field: str, value: object) -> None:
    assert getattr(DeepSpeedConfig(**given), field) == value


@pytest.mark.parametrize("name", [name for name, field in UNUSED.items() if isinstance(field, Refused)])
def test_what_means_nothing_here_is_refused_with_the_reason_unless_it_says_nothing(name: str) -> None:
    field = UNUSED[name]
    assert isinstance(field, Refused)
    for neutral in (None, *field.neutral):
        given: dict[str, Any] = {name: neutral}
        assert DeepSpeedConfig(**given) == DeepSpeedConfig()
    given = {name: "something"}
    with pytest.raises(InvalidOption, match=f"^{name} is refused: ") as caught:
        DeepSpeedConfig(**given)
    assert field.reason in str(caught.value)


def test_harmless_fields_are_accepted_whatever_they_say() -> None:
    assert DeepSpeedConfig(return_tuple=False, replace_method="auto", moe=True) == DeepSpeedConfig()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tensor_paralel_size": 2}, "tensor_paralel_size is no field .*; did you mean tensor_parallel"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be a whole number of at least 1, not 0"),
        ({"tensor_parallel_size": "2"}, "tensor_parallel_size must be a whole number of at least 1, not '2'"),
        ({"tensor_parallel": 2}, "tensor_parallel must be a dict, not 2"),
        ({"dtype": torch.int8}, "dtype int8 is a way to store weights: give use_quantization=True"),
        ({"dtype": "flaot16"}, "dtype flaot16 is unknown; did you mean float16"),
        ({"quantization_config": {"bit": 8}}, "quantization_config has no 'bit'; did you mean bits"),
        ({"quantization_config": {"bits": 3}}, "quantization_config has bits 3; choose 8 or 4"),
        ({"quantization_config": {"group_size": 7}}, "quantization_config has group_size 7; choose 32, 64, 128"),
        ({"quant": {"weight": {"q_groups": 8}}}, "quant has q_groups 8; give quantization_config"),
        (
            {"use_quantization": False, "quantization_config": {"bits": 4}},
            "use_quantization is False, and quantization_config says how to quantize: leave one of them out",
        ),
        (
            {"tensor_parallel_size": 3, "mp_size": 2},
            "mp_size is 2, and tensor_parallel_size is 3: they are one option, give one of them",
        ),
        (
            {"tp": {"tp_size": 2}, "tensor_parallel": {"tp_size": 4}},
            r"tensor_parallel\.tp_size is 4, and tp\.tp_size is 2: they are one option",
        ),
        (
            {"quant": {"enabled": False}, "use_quantization": True},
            r"quant\.enabled is False, and use_quantization is True: they are one option",
        ),
        (
            {"quant": {}, "quantization_config": {"bits": 4}},
            r"quant is {'bits': 8, 'symmetric': True}, and quantization_config is {'bits': 4}: they are one option",
        ),
        ({"mp_size": 0}, "mp_size must be a whole number of at least 1, not 0"),
        ({"tensor_parallel_size": None}, "tensor_parallel_size must be a whole number of at least 1, not None"),
        ({"min_out_tokens": None, "max_out_tokens": 5}, "min_out_tokens must be a whole number of at least 1"),
        *[
            ({"quantization_config": said}, "quantization_config must be a dict")
            for said in ("int8", 8, True, ["bits"])
        ],
        *[
            ({"quantization_config": {"bits": bits}}, "quantization_config has bits .*; choose 8 or 4")
            for bits in ([8], 8.0, True, "8", None)
        ],
        *[
            ({"quantization_config": {"group_size": size}}, "quantization_config has group_size .*; choose 32, 64")
            for size in (32.0, 0, "32")
        ],
        (
            {"quantization_config": {"symmetric": "no"}},
            "quantization_config has symmetric 'no'; choose True or False",
        ),
        ({"quant": {"weight": {"num_bits": 3}}}, "quant has bits 3; choose 8 or 4"),
        (
            {"quantization": "int8"},
            "quantization must be a QuantizationConfig, not 'int8': give quantization_config",
        ),
        *[({"checkpoint_dict": said}, "checkpoint_dict must be a dict or a JSON file") for said in (5, ["a"])],
        ({"checkpoint_dict": {"checkpoints": ["a.safetensors"], "base_dir": 7}}, "checkpoint_dict has base_dir 7"),
        ({"base_dir": 7}, "base_dir must be a directory, not 7"),
        ({"replace_with_kernel_inject": "no"}, "replace_with_kernel_inject must be True or False, not 'no'"),
        ({"kernel_inject": 1}, "kernel_inject must be True or False, not 1"),
        ({"enable_cuda_graph": "maybe"}, "enable_cuda_graph must be True or False, not 'maybe'"),
        ({"use_quantization": "yes"}, "use_quantization must be True or False, not 'yes'"),
        ({"quant": {"foo": 1}}, "quant has foo, which means nothing here; leave it out"),
        ({"quant": {"weight": {"foo": 1}}}, r"quant has weight\.foo, which means nothing here; leave it out"),
        (
            {"quant": {"activation": {"num_bits": 8}}},
            r"quant\.activation is refused: give quantization_config={'bits'",
        ),
        (
            {"quant": {"qkv": {"enabled": False}}},
            r"quant\.qkv is refused: all linear layers are quantized, or none",
        ),
        ({"quant": True}, "quant must be a dict, not True"),
        ({"quant": {"weight": 5}}, r"quant\.weight must be a dict, not 5"),
        ({"quant": {"enabled": "no"}}, r"quant\.enabled must be True or False, not 'no'"),
        ({"max_out_tokens": 8, "min_out_tokens": 9}, "min_out_tokens must not exceed max_out_tokens, which is 8"),
        ({"checkpoint_dict": {"checkpoints": ["a.bin"]}}, "checkpoint_dict names a.bin, which is no safetensors"),
        ({"checkpoint_dict": {}}, "checkpoint_dict must hold 'checkpoints'"),
        ({"checkpoint": "/no/such.json"}, "checkpoint_dict /no/such.json cannot be read"),
        ({"injection_policy": {"Block": ["o_proj"]}}, "injection_policy lists 'o_proj' for Block; names are"),
        ({"injection_policy": {"Block": {"a.b"}}}, "injection_policy must map a class to a list or tuple"),
        ({"injection_policy": {}}, "injection_policy must be {Class"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_with_what_goes_instead(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOption, match=f"^{words}") as caught:
        DeepSpeedConfig(**given)
    assert "\n" not in str(caught.value)


def test_a_config_is_read_from_a_dict_or_a_file_and_must_not_be_contradicted(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"dtype": "bf16", "tensor_parallel": {"tp_size": 2}}))
    read = DeepSpeedConfig.read(str(file))
    assert read == DeepSpeedConfig.read({"dtype": "bf16"}, mp_size=2) == DeepSpeedConfig(2, "bf16")
    with pytest.raises(InvalidOption, match="dtype is 'bf16' in config and 'fp32' beside it"):
        DeepSpeedConfig.read({"dtype": "bf16"}, dtype="fp32")
    with pytest.raises(InvalidOption, match="mp_size is 3, and tensor_parallel_size is 1: they are one option"):
        DeepSpeedConfig.read({"tensor_parallel_size": 1}, mp_size=3)
    with pytest.raises(InvalidOption, match="config is a DeepSpeedConfig: put dtype into it"):
        DeepSpeedConfig.read(read, dtype="fp32")
    with pytest.raises(InvalidOption, match="config must be a DeepSpeedConfig, a dict or a JSON file"):
        DeepSpeedConfig.read(3)  # type: ignore[arg-type]
    assert read.with_policy({"Block": ["a.b"]}).injection_policy == {"Block": ("a.b",)}
    assert read.injection_policy is None
    with pytest.raises(InvalidOption, match="injection_policy is one in config and another beside it: give one"):
        read.with_policy({"Block": ["a.b"]}).with_policy({"Block": ["a.c"]})
    with pytest.raises(InvalidOption, match="config has 5, which is no name of a field"):
        DeepSpeedConfig.read({5: 1})  # type: ignore[dict-item]
    assert DeepSpeedConfig.read(file) == read


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"quantization_config": {"bits": 4}},
        {"injection_policy": {"Block": ["a.b"]}, "checkpoint_dict": {"checkpoints": ["a.safetensors"]}},
    ],
)
def test_a_config_is_a_value_to_hash_copy_and_replace(given: dict[str, Any]) -> None:
    config = DeepSpeedConfig(**given)
    assert hash(config) == hash(DeepSpeedConfig(**given))
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == replace(config) == config
    assert replace(config, tensor_parallel_size=2) == DeepSpeedConfig(2, **given)


def test_a_replaced_quantization_must_not_contradict_the_one_there() -> None:
    int8: Any = {"quantization_config": {"bits": 8}}
    assert replace(DeepSpeedConfig(), **int8).quantization == QuantizationConfig(bits=8)
    config = DeepSpeedConfig(use_quantization=True)
    changes: list[Any] = [{"use_quantization": False}, {"quantization_config": {"bits": 4}}]
    for change in changes:
        with pytest.raises(InvalidOption, match=r"^\w+ is .*, and quantization is w8: give one of them"):
            replace(config, **change)
    assert replace(config, quantization=None).quantization is None
