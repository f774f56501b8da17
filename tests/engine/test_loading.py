"""Tensors reach the model whatever their storage, names and files; what does not fit is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
)

from distllm.engine.checkpoint import CheckpointError, open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.distributed.sharding import plan_sharding
from distllm.engine.distributed.shrinking import shrink
from distllm.engine.factory import build_executor
from distllm.engine.injection.plain_weights import place_plain_weights
from distllm.engine.injection.unread_weight import UnreadWeight
from distllm.engine.injection.weights import own_weights
from distllm.engine.loading import build_on_meta, load_config, load_weights

CPU = torch.device("cpu")
Checkpoints = Callable[[str], Path]


def load(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    checkpoint = open_checkpoint(path)
    return load_weights(checkpoint, build_on_meta(checkpoint, load_config(checkpoint), dtype), dtype, CPU)


def rewrite(path: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(path, target)
    tensors = change(load_file(path / "model.safetensors"))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen3_moe", "gpt_oss", "gemma2", "opt"])
def test_every_tensor_is_what_transformers_loads(checkpoint: Checkpoints, kind: str) -> None:
    expected = AutoModelForCausalLM.from_pretrained(checkpoint(kind), dtype=torch.float32).state_dict()
    loaded = load(checkpoint(kind)).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma2"])
def test_computed_buffers_are_those_of_transformers(checkpoint: Checkpoints, kind: str) -> None:
    expected = dict(AutoModelForCausalLM.from_pretrained(checkpoint(kind)).named_buffers())
    loaded = dict(load(checkpoint(kind)).named_buffers())
    assert expected
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_storage_types_are_converted(
    checkpoint: Checkpoints, tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    path = rewrite(
        checkpoint("llama"),
        tmp_path / "m",
        lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()},
    )
    loaded = load(path, dtype).state_dict()
    for name, tensor in load_file(path / "model.safetensors").items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor.to(dtype))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "deepseek_v3", "gpt_oss", "phi3"])
def test_weights_that_are_left_unread_are_read_as_they_would_be_loaded(
    checkpoint: Checkpoints, kind: str, dtype: torch.dtype, size: int
) -> None:
    stored = open_checkpoint(checkpoint(kind))

    def load_part(*, leaves_unread: bool) -> PreTrainedModel:
        model = build_on_meta(stored, load_config(stored), dtype)
        if size == 1:
            return load_weights(stored, model, dtype, CPU, leaves_unread=leaves_unread)
        sharding = plan_sharding(model, size - 1, size)
        shrink(model, sharding)
        return load_weights(stored, model, dtype, CPU, sharding.parts, leaves_unread=leaves_unread)

    expected, model = load_part(leaves_unread=False).state_dict(), load_part(leaves_unread=True)
    unread = [
        module for module in model.modules() if any(isinstance(it, UnreadWeight) for it in own_weights(module))
    ]
    is_converted = dtype != torch.float32 or size > 1 or kind in ("mixtral", "deepseek_v3")
    assert bool(unread) == is_converted
    place_plain_weights(model, {})
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_shards_are_put_together(checkpoint: Checkpoints, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(checkpoint("llama")).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(open_checkpoint(tmp_path).shards) > 2
    expected = load(checkpoint("llama")).state_dict()
    loaded = load(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_names_without_the_prefix_of_the_body_are_understood(checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = rewrite(
        checkpoint("gpt2"),
        tmp_path / "m",
        lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()},
    )
    assert "h.0.attn.c_attn.weight" in open_checkpoint(path).tensors
    expected = load(checkpoint("gpt2")).state_dict()
    loaded = load(path).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_weights_of_the_serving_type_stay_views_of_the_file(checkpoint: Checkpoints) -> None:
    model = load(checkpoint("llama"))
    address = model.get_submodule("model.layers.0.mlp.up_proj").weight.data_ptr()
    mapped = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("model.safetensors")
    ]
    ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in mapped]
    assert any(start <= address < end for start, end in ranges)


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("model.layers.1.mlp.up_proj.weight"), "lacks 1 tensors, first model.layers.1.mlp.up_proj.weight"),
        (
            lambda tensors: {**tensors, "model.extra.weight": torch.ones(2)},
            "has 1 tensors that LlamaForCausalLM has no place for",
        ),
        (
            lambda tensors: {**tensors, "model.norm.weight": torch.ones(63)},
            "model.norm.weight has shape (63,), config.json asks for (64,)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    checkpoint: Checkpoints,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    words: str,
) -> None:
    path = rewrite(checkpoint("llama"), tmp_path / "m", change)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_expert_that_is_missing_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    names = sorted(open_checkpoint(checkpoint("qwen3_moe")).tensors)
    expert = next(name for name in names if ".experts.3." in name)
    path = rewrite(checkpoint("qwen3_moe"), tmp_path / "m", without(expert))
    with pytest.raises(CheckpointError, match="experts"):
        load(path)


def with_config(path: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(path, target)
    config = json.loads((path / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"num_attention_heads": "many"}, "'num_attention_heads' expected int, got str"),
        ({"hidden_size": None}, "'hidden_size' expected int, got NoneType"),
        ({"num_attention_heads": 5}, "(64) is not a multiple of the number of attention heads (5)"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 1, not -1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be at least 1, not 0"),
        ({"dtype": "float99"}, "dtype 'float99' is no number type that torch knows"),
        ({"model_type": 5}, "model_type must name an architecture, not 5"),
        ({"text_config": 5}, "text_config must be an object"),
        (T5Config().to_dict(), "encoder-decoder"),
        ({"model_type": "vit"}, "no causal language model"),
    ],
)
def test_a_config_that_is_no_decoders_is_refused_by_its_field(
    checkpoint: Checkpoints, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    path = with_config(checkpoint("llama"), tmp_path / "m", **changes)
    with pytest.raises(CheckpointError) as caught:
        load_config(open_checkpoint(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": {"rope_type": "bogus", "rope_theta": 1e4}}, "transformers knows no 'bogus'"),
        ({"hidden_act": "bogus"}, "transformers knows no 'bogus'"),
        ({"pad_token_id": 9999}, "Padding_idx must be within num_embeddings"),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_refused_by_its_file(
    checkpoint: Checkpoints, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    path = with_config(checkpoint("llama"), tmp_path / "m", **changes)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}/config.json: LlamaForCausalLM cannot be built from it: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)),
            "BloomForCausalLM cannot be served: its forward takes no position_ids",
        ),
        (
            GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8)),
            "GPTJForCausalLM cannot be served: its attention cannot be led to the paged cache",
        ),
        (
            MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)),
            "MambaForCausalLM cannot be served",
        ),
        (
            Llama4ForCausalLM(
                Llama4TextConfig(
                    vocab_size=64,
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    head_dim=16,
                    intermediate_size=32,
                    intermediate_size_mlp=32,
                    num_local_experts=2,
                    attention_chunk_size=4,
                )
            ),
            "Llama4ForCausalLM cannot be served: a probe of two tokens failed: it attends with a mask of its own",
        ),
    ],
    ids=["bloom", "gptj", "mamba", "llama4"],
)
def test_a_decoder_that_keeps_state_elsewhere_is_refused_with_the_reason(
    tmp_path: Path, model: PreTrainedModel, words: str
) -> None:
    model.save_pretrained(tmp_path)
    config = EngineConfig(model=str(tmp_path), device="cpu")
    with pytest.raises(CheckpointError) as caught:
        build_executor(config, lambda _activity, _fraction: None)
    assert words in str(caught.value)


def test_code_inside_a_checkpoint_is_never_run(checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = with_config(
        checkpoint("llama"),
        tmp_path / "m",
        model_type="own",
        auto_map={"AutoConfig": "configuration_own.OwnConfig"},
    )
    (path / "configuration_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError):
        load_config(open_checkpoint(path))
    assert not (tmp_path / "ran").exists()
    assert AutoConfig.from_pretrained(checkpoint("llama")).model_type == "llama"
