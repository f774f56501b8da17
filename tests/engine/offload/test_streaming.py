"""An engine whose layers stream computes the very bits of one that holds them all."""

import gc
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distllm.engine.config import EngineConfig
from distllm.engine.forward import ModelForward
from distllm.engine.offload.residency import Residency
from distllm.engine.pool_size import OutOfMemory
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.offload.steps import build, run_steps
from tests.engine.test_stored_quantization import FORMATS, write

INT8 = QuantizationConfig(bits=8, group_size=32, symmetric=False)
INT4 = QuantizationConfig(bits=4, group_size=32, symmetric=False)
KINDS = ("llama", "llama-odd", "qwen3", "phi3", "gemma2", "gpt2", "opt", "mixtral", "qwen3_moe", "gpt_oss")


@pytest.fixture
def config(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., EngineConfig]:
    def make(kind: str, **changes: Any) -> EngineConfig:
        plain = EngineConfig(
            model=str(checkpoint(kind)), device="cpu", max_model_len=128, num_blocks=40, num_threads=2
        )
        return replace(plain, offload_dir=str(tmp_path), **changes)

    return make


@pytest.fixture
def checkpoint_of_eight_layers(tmp_path: Path) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=131, max_position_embeddings=128, **shape)).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def all_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers stream, though a page for each scale takes more than the ring saves where layers are so small."""
    monkeypatch.setattr(
        "distllm.engine.offload.residency.choose_residents",
        lambda sizes, *_: Residency((0, 1, 2), 2, max(sizes), sum(sizes), 0),
    )


def open_files() -> list[str]:
    return [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_layers_compute_the_same_bits(
    config: Callable[..., EngineConfig], caplog: pytest.LogCaptureFixture, kind: str, dtype: str
) -> None:
    whole = build(config(kind, dtype=dtype))
    expected = run_steps(whole)
    with caplog.at_level(logging.INFO, "distllm.engine"):
        limit = int(whole.info.weight_bytes * 0.95)
        streaming = build(config(kind, dtype=dtype, offload="disk", weights_bytes=limit))
    assert "0 of 3 layers stay in memory; 3 stream from disk" in caplog.text
    assert torch.equal(run_steps(streaming), expected)
    streaming.close()


@pytest.mark.parametrize("quantization", [INT8, INT4])
@pytest.mark.parametrize("kind", ["qwen3", "mixtral", "gpt2"])
def test_quantized_layers_stream_with_their_scales(
    config: Callable[..., EngineConfig], all_stream: None, kind: str, quantization: QuantizationConfig
) -> None:
    plain = config(kind, dtype="bfloat16", quantization=quantization)
    whole, streaming = build(plain), build(replace(plain, offload="disk"))
    assert streaming.info.streamed_bytes > 0
    assert torch.equal(run_steps(streaming), run_steps(whole))
    streaming.close()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_plain_torch_streams_as_well(config: Callable[..., EngineConfig], kind: str) -> None:
    whole = build(config(kind, attention_backend="reference"))
    limit = int(whole.info.weight_bytes * 0.97)
    streaming = build(config(kind, attention_backend="reference", offload="disk", weights_bytes=limit))
    assert streaming.info.streamed_bytes > 0.3 * whole.info.weight_bytes
    assert streaming.info.weight_bytes >= whole.info.weight_bytes
    assert torch.equal(run_steps(streaming), run_steps(whole))
    streaming.close()


@pytest.mark.parametrize("quantization", [INT8, INT4])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_plain_torch_streams_quantized_layers(
    config: Callable[..., EngineConfig], all_stream: None, kind: str, quantization: QuantizationConfig
) -> None:
    """What a GPU does, on a CPU."""
    plain = config(kind, attention_backend="reference", quantization=quantization)
    whole, streaming = build(plain), build(replace(plain, offload="disk"))
    assert streaming.info.streamed_bytes > 0.3 * whole.info.weight_bytes
    assert streaming.info.weight_bytes >= whole.info.weight_bytes
    assert torch.equal(run_steps(streaming), run_steps(whole))
    streaming.close()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["gptq sorted", "awq", "W4A16 with zero points", "W8A8", "fp8 a block"])
def test_layers_that_are_stored_quantized_stream(
    config: Callable[..., EngineConfig], all_stream: None, tmp_path: Path, name: str, backend: str
) -> None:
    plain = config("llama", attention_backend=backend)
    packed, _ = write(Path(plain.model), tmp_path, *FORMATS[name])
    whole = build(replace(plain, model=str(packed)))
    streaming = build(replace(plain, model=str(packed), offload="disk"))
    assert streaming.info.streamed_bytes > 0
    assert torch.equal(run_steps(streaming), run_steps(whole))
    streaming.close()


def test_experts_that_are_stored_quantized_stream(
    config: Callable[..., EngineConfig], all_stream: None, tmp_path: Path
) -> None:
    plain = config("mixtral", attention_backend="reference")
    packed, _ = write(Path(plain.model), tmp_path, *FORMATS["gptq"])
    whole = build(replace(plain, model=str(packed)))
    streaming = build(replace(plain, model=str(packed), offload="disk"))
    assert torch.equal(run_steps(streaming), run_steps(whole))
    streaming.close()


def test_with_room_enough_nothing_streams(config: Callable[..., EngineConfig]) -> None:
    expected = run_steps(build(config("qwen3")))
    roomy = build(config("qwen3", offload="disk"))
    assert roomy.info.streamed_bytes == 0
    assert torch.equal(run_steps(roomy), expected)


def test_resident_and_streamed_layers_go_together(
    checkpoint_of_eight_layers: Path, config: Callable[..., EngineConfig], caplog: pytest.LogCaptureFixture
) -> None:
    plain = replace(config("llama"), model=str(checkpoint_of_eight_layers))
    whole = build(plain)
    with caplog.at_level(logging.INFO, "distllm.engine"):
        streaming = build(replace(plain, offload="disk", weights_bytes=int(whole.info.weight_bytes * 0.85)))
    assert "of 8 layers stay in memory; " in caplog.text
    assert 0.3 < streaming.info.streamed_bytes / whole.info.weight_bytes < 0.7
    assert torch.equal(run_steps(streaming), run_steps(whole))
    streaming.close()


def test_a_step_that_fails_leaves_the_next_one_right(config: Callable[..., EngineConfig]) -> None:
    whole = build(config("llama"))
    streaming = build(config("llama", offload="disk", weights_bytes=int(whole.info.weight_bytes * 0.95)))
    forward = streaming.runner.forward
    assert isinstance(forward, ModelForward)
    module = forward.model.model.layers[1]
    module.forward, original = lambda *_, **__: 1 / 0, module.forward
    with pytest.raises(ZeroDivisionError):
        run_steps(streaming)
    module.forward = original
    assert torch.equal(run_steps(streaming), run_steps(whole))
    streaming.close()


def test_closing_ends_the_thread_and_gives_the_disk_back(
    config: Callable[..., EngineConfig], tmp_path: Path
) -> None:
    whole = build(config("llama"))
    streaming = build(config("llama", offload="disk", weights_bytes=int(whole.info.weight_bytes * 0.95)))
    assert not list(tmp_path.iterdir())
    assert any(thread.name == "offload-ring" for thread in threading.enumerate())
    assert [name for name in open_files() if name.startswith(str(tmp_path))]
    streaming.close()
    gc.collect()
    assert not any(thread.name == "offload-ring" for thread in threading.enumerate())
    assert not [name for name in open_files() if name.startswith(str(tmp_path))]


def test_host_memory_is_no_place_for_the_layers_of_a_cpu(config: Callable[..., EngineConfig]) -> None:
    with pytest.raises(ValueError, match="use --offload disk"):
        build(config("llama", offload="cpu"))


def test_too_little_memory_is_refused_with_the_flags(config: Callable[..., EngineConfig]) -> None:
    with pytest.raises(OutOfMemory, match="raise --weights-memory"):
        build(config("llama", offload="disk", weights_bytes=1000))
