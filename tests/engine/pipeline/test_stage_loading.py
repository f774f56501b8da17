"""A stage reads what is its own and nothing else, and refuses what of that is not there."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.factory import build_executor
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.plan import plan_stage
from distllm.engine.quantization.by_layer import runs_of
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.conftest import MODELS, Served, make_model
from tests.engine.pipeline.stages import check_bits, config_of, load_stage, load_stages, run_stages, step_of
from tests.engine.test_forward import NUM_BLOCKS, Part, make_stories, mixed_batch
from tests.engine.test_stored_quantization import FORMATS, write

Checkpoints = Callable[[str], Path]
Serve = Callable[..., Served]
ALL = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]


def is_of_stage(name: str, begin: int, end: int, *, is_tied: bool) -> bool:
    """Whether a stored tensor of a Llama or GPT-2 belongs to layers [begin, end) of three, by its name."""
    parts = name.split(".")
    number = next((int(part) for part in parts if part.isdigit()), None)
    if number is not None:
        return begin <= number < end
    owner = parts[-2]
    is_before = owner in ("embed_tokens", "wte", "wpe")
    return (begin == 0 and is_before) or (
        end == 3 and (not is_before or (is_tied and owner in ("embed_tokens", "wte")))
    )


def rewrite(path: Path, target: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Path:
    shutil.copytree(path, target)
    save_file(dict(change(load_file(path / "model.safetensors"))), target / "model.safetensors")
    return target


@pytest.mark.parametrize(("begin", "end"), ALL)
@pytest.mark.parametrize(("kind", "is_tied"), [("llama", True), ("llama-odd", False), ("gpt2", True)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_of_other_stages_do_not_matter(
    checkpoint: Checkpoints, tmp_path: Path, kind: str, is_tied: bool, dtype: str, begin: int, end: int
) -> None:
    """They are nan, which would reach all that reads them, and in the other copy not there at all."""

    def spoilt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor if is_of_stage(name, begin, end, is_tied=is_tied) else torch.full_like(tensor, torch.nan)
            for name, tensor in tensors.items()
        }

    def left(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: it for name, it in tensors.items() if is_of_stage(name, begin, end, is_tied=is_tied)}

    source = checkpoint(kind)
    paths = source, rewrite(source, tmp_path / "spoilt", spoilt), rewrite(source, tmp_path / "left", left)
    outputs = []
    for path in paths:
        stage = load_stage(config_of(path, dtype), begin, end).stage_over(NUM_BLOCKS)
        (story,) = make_stories(1, [20])
        batch = step_of([Part(story, 0, 20)])
        received = None
        if begin > 0:
            width = 60 if kind == "llama-odd" else 64
            received = torch.randn(20, width, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
        output = stage.compute(batch, received)
        outputs.append(output if isinstance(output, Tensor) else output.whole)
    assert outputs[0].isfinite().all()
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def in_shards(path: Path, kind: str) -> dict[str, str]:
    """Write a model in many files. Returns the file of each tensor."""
    make_model(kind).save_pretrained(path, max_shard_size="60KB")
    files: dict[str, str] = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    return files


def test_files_of_other_stages_need_not_be_there(checkpoint: Checkpoints, serve: Serve, tmp_path: Path) -> None:
    files = in_shards(tmp_path / "all", "mistral")
    stages = []
    for begin, end in ((0, 1), (1, 2), (2, 3)):
        path = tmp_path / f"{begin}"
        shutil.copytree(tmp_path / "all", path)
        kept = {file for name, file in files.items() if is_of_stage(name, begin, end, is_tied=False)}
        assert kept < set(files.values())
        for file in set(files.values()) - kept:
            (path / file).unlink()
        stages.append(load_stage(config_of(path), begin, end).stage_over(NUM_BLOCKS))
    check_bits(serve("mistral"), stages, mixed_batch())


def test_a_file_of_the_stage_that_is_missing_is_named(tmp_path: Path) -> None:
    files = in_shards(tmp_path / "all", "mistral")
    file = files["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "all" / file).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of \d+ shards, first {file}"):
        load_stage(config_of(tmp_path / "all"), 1, 2)


NAMES = ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("begin", "end"), ALL)
def test_a_tensor_of_the_stage_that_is_missing_or_of_another_shape_is_refused(
    checkpoint: Checkpoints, tmp_path: Path, name: str, begin: int, end: int
) -> None:
    source = checkpoint("mistral")
    short = rewrite(
        source,
        tmp_path / "short",
        lambda it: {key: value[:-1] if key == name else value for key, value in it.items()},
    )
    lacking = rewrite(
        source, tmp_path / "lacking", lambda it: {key: value for key, value in it.items() if key != name}
    )
    if not is_of_stage(name, begin, end, is_tied=False):
        load_stage(config_of(short), begin, end)
        load_stage(config_of(lacking), begin, end)
        return
    with pytest.raises(CheckpointError, match=rf"{name} has shape .*, config\.json asks for"):
        load_stage(config_of(short), begin, end)
    with pytest.raises(CheckpointError, match=rf"lacks 1 tensors, first {name}"):
        load_stage(config_of(lacking), begin, end)


@pytest.mark.parametrize(("begin", "end"), ALL)
@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.bias", "model.layers.1.extra.bias", "extra.weight"]
)
def test_a_tensor_that_the_model_has_no_place_for_is_refused(
    checkpoint: Checkpoints, tmp_path: Path, name: str, begin: int, end: int
) -> None:
    path = rewrite(checkpoint("mistral"), tmp_path / "m", lambda it: {**it, name: torch.zeros(64)})
    if "q_proj" in name and not begin <= 1 < end:
        load_stage(config_of(path), begin, end)
        return
    with pytest.raises(CheckpointError, match=rf"no place for, first {name}"):
        load_stage(config_of(path), begin, end)


def test_layers_of_another_model_are_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(CheckpointError, match="has 3 layers, and the stage is one of 4"):
        plan_stage(checkpoint("llama"), LayerRange(0, 2, 4))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_weights_are_quantized_as_in_the_whole_model(
    checkpoint: Checkpoints, serve: Serve, kind: str, name: str, backend: str
) -> None:
    quantization = QuantizationConfig.named(name)
    config = config_of(checkpoint(kind), quantization=quantization, attention_backend=backend)
    served = serve(kind, backend=backend, quantization=quantization)
    check_bits(served, load_stages(config, (1, 2), NUM_BLOCKS), mixed_batch())


@pytest.mark.parametrize("name", ["gptq", "awq", "W8A8", "fp8 a block"])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_weights_that_are_stored_quantized_stay_so(
    checkpoint: Checkpoints, tmp_path: Path, kind: str, name: str
) -> None:
    packed, _ = write(checkpoint(kind), tmp_path, *FORMATS[name])
    config = config_of(packed, num_blocks=NUM_BLOCKS)
    served = Served(packed, build_executor(config, lambda *_: None))
    check_bits(served, load_stages(config, (1, 2), NUM_BLOCKS), mixed_batch())


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "fp8"])
def test_the_kv_cache_is_quantized_as_in_the_whole_model(
    checkpoint: Checkpoints, serve: Serve, kv_cache_dtype: str
) -> None:
    config = config_of(checkpoint("llama"), kv_cache_dtype=kv_cache_dtype)
    check_bits(serve("llama", kv_cache_dtype=kv_cache_dtype), load_stages(config, (1,), NUM_BLOCKS), mixed_batch())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_layers_of_a_stage_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    prefix, special = MODELS[kind]
    monkeypatch.setitem(MODELS, kind, (prefix, {**special, "num_hidden_layers": 5}))
    make_model(kind).save_pretrained(tmp_path)
    config = config_of(tmp_path, num_blocks=NUM_BLOCKS)
    served = Served(tmp_path, build_executor(config, lambda *_: None))
    (first, rest) = (load_stage(config, 0, 1, 5), load_stage(config, 1, 5, 5))
    limit = int(rest.weight_bytes * 0.95)
    with caplog.at_level(logging.INFO, "distllm.engine"):
        offloaded = replace(config, offload="disk", offload_dir=str(tmp_path), weights_bytes=limit)
        streaming = load_stage(offloaded, 1, 5, 5)
    assert re.search(r"[1-4] stream from disk", caplog.text)
    check_bits(served, [first.stage_over(NUM_BLOCKS), streaming.stage_over(NUM_BLOCKS)], mixed_batch())


@pytest.mark.parametrize("name", ["Olmo", "NanoChat"])
def test_a_stage_may_be_left_without_any_parameter(tmp_path: Path, name: str) -> None:
    """Their norms have no weights, and packed weights are no parameters."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(vocab_size=131, max_position_embeddings=128, **shape)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    executor = build_executor(config_of(tmp_path, num_blocks=NUM_BLOCKS), lambda *_: None)
    stages = load_stages(config_of(tmp_path), (1, 2), NUM_BLOCKS)
    check_bits(Served(tmp_path, executor), stages, mixed_batch())


@pytest.mark.parametrize("kind", ["llama-odd", "gpt2", "mixtral"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_layers_may_be_quantized_each_in_its_own_way(checkpoint: Checkpoints, kind: str, backend: str) -> None:
    """A stage of several such has the bits of stages that have them one by one."""
    int8, int4 = QuantizationConfig.named("int8"), QuantizationConfig.named("int4")
    configs = [int8, None, int4] if kind != "llama-odd" else [int8, None, int8]
    plain = config_of(checkpoint(kind), "bfloat16", attention_backend=backend)
    alone = [
        load_stage(replace(plain, quantization=config), number, number + 1).stage_over(NUM_BLOCKS)
        for number, config in enumerate(configs)
    ]
    for cuts in ((1,), (2,)):
        spans = zip([0, *cuts], [*cuts, 3], strict=True)
        mixed = [
            load_stage(replace(plain, layer_quantization=runs_of(configs[begin:end])), begin, end)
            for begin, end in spans
        ]
        forwards = [served.stage_over(NUM_BLOCKS) for served in mixed]
        for step in mixed_batch():
            batch = step_of(step)
            found, expected = run_stages(forwards, batch).whole, run_stages(alone, batch).whole
            if (kind, backend) == ("mixtral", "reference"):  # where transformers sums a dense layer's experts
                assert (found - expected).abs().max() < 0.1
            else:
                assert torch.equal(found, expected)
        longer = next(served for served in mixed if len(served.layers) == 2)
        assert longer.compute.family in ("/1xw8+1xstored", "/1xstored+1xw4g32", "/1xstored+1xw8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_tied_head_stays_quantized_as_the_last_layer(checkpoint: Checkpoints, kind: str, dtype: str) -> None:
    int8 = QuantizationConfig.named("int8")
    for configs in ([int8, None, None], [None, None, int8]):
        alone = [
            load_stage(config_of(checkpoint(kind), dtype, quantization=config), number, number + 1)
            for number, config in enumerate(configs)
        ]
        whole = load_stage(config_of(checkpoint(kind), dtype, layer_quantization=runs_of(configs)), 0, 3)
        stages, one_stage = [served.stage_over(NUM_BLOCKS) for served in alone], [whole.stage_over(NUM_BLOCKS)]
        for step in mixed_batch():
            batch = step_of(step)
            assert torch.equal(run_stages(one_stage, batch).whole, run_stages(stages, batch).whole)
