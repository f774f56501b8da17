"""On a CUDA device layers stream from pinned memory and from a disk, and compute what resident ones do."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from distllm.engine.config import EngineConfig
from distllm.engine.offload.residency import Residency
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.offload.steps import build, run_steps
from tests.engine.test_stored_quantization import FORMATS, write

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = 1e-4


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen3_moe"])
def test_streamed_layers_compute_the_same(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    offload: Literal["cpu", "disk"],
) -> None:
    config = EngineConfig(
        model=str(checkpoint(kind)), device="cuda", dtype="float32", max_model_len=128, num_blocks=40
    )
    whole = build(config)
    limit = int(whole.info.weight_bytes * 0.95)
    with caplog.at_level(logging.INFO, "distllm.engine"):
        streaming = build(replace(config, offload=offload, offload_dir=str(tmp_path), weights_bytes=limit))
    assert "0 of 3 layers stay in memory; 3 stream from" in caplog.text
    assert (streaming.info.device, streaming.info.streamed_bytes > 0) == ("cuda:0", True)
    expected = run_steps(whole)
    for _ in range(3):
        assert (run_steps(streaming) - expected).abs().max() < TOLERANCE
    streaming.close()


@pytest.fixture
def all_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "distllm.engine.offload.residency.choose_residents",
        lambda sizes, *_: Residency((0, 1, 2), 2, max(sizes), sum(sizes), 0),
    )


def assert_streams_the_same(config: EngineConfig, offload: Literal["cpu", "disk"], tmp_path: Path) -> None:
    whole = build(config)
    streaming = build(replace(config, offload=offload, offload_dir=str(tmp_path)))
    assert (streaming.info.device, streaming.info.streamed_bytes > 0) == ("cuda:0", True)
    expected = run_steps(whole)
    for _ in range(3):
        assert (run_steps(streaming) - expected).abs().max() < TOLERANCE
    streaming.close()


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_weights_that_we_quantize_stream_to_the_gpu(
    checkpoint: Callable[[str], Path],
    all_stream: None,
    tmp_path: Path,
    kind: str,
    bits: int,
    offload: Literal["cpu", "disk"],
) -> None:
    quantization = QuantizationConfig(bits=bits, group_size=32, symmetric=False)
    config = EngineConfig(
        model=str(checkpoint(kind)), device="cuda", dtype="float32", max_model_len=128, num_blocks=40,
        quantization=quantization,
    )  # fmt: skip
    assert_streams_the_same(config, offload, tmp_path)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("name", ["gptq sorted", "awq", "W4A16", "W8A8", "fp8 a channel"])
def test_weights_that_are_stored_quantized_stream_to_the_gpu(
    checkpoint: Callable[[str], Path], all_stream: None, tmp_path: Path, name: str, offload: Literal["cpu", "disk"]
) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS[name])
    config = EngineConfig(model=str(packed), device="cuda", dtype="float32", max_model_len=128, num_blocks=40)
    assert_streams_the_same(config, offload, tmp_path)


def test_what_streams_takes_no_more_of_the_gpu_than_it_was_given(tmp_path: Path) -> None:
    """The ring and what stays, not the model, is what the device holds."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, max_position_embeddings=128, **shape))
    model.save_pretrained(tmp_path)
    weight_bytes = model.num_parameters() * 4
    config = EngineConfig(model=str(tmp_path), device="cuda", dtype="float32", num_blocks=16, offload="cpu")
    before = torch.cuda.memory_allocated()
    executor = build(replace(config, weights_bytes=weight_bytes // 2))
    assert torch.cuda.memory_allocated() - before < 0.6 * weight_bytes
    executor.close()
