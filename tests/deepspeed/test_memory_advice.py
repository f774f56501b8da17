"""What does not fit is refused with what would: the quantization, the ranks, the context."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distllm import HybridInference, OutOfMemory, init_inference, optimize_with_deepspeed
from distllm.deepspeed import starting
from distllm.deepspeed.memory_advice import Devices, refusal
from distllm.engine.checkpoint import Checkpoint, StoredTensor
from distllm.engine.config import EngineConfig
from distllm.engine.examination import Architecture
from distllm.engine.plan import memory_plan
from distllm.engine.quantization.config import QuantizationConfig
from tests.deepspeed.conftest import make_decoder

GIB = 2**30
ARCHITECTURE = Architecture(
    kv_elements_per_token=32 * 2 * 1024, kv_heads_per_token=32 * 2 * 8, vocab_size=32000, hidden_size=4096
)
CONFIG = EngineConfig(model="x", device="cpu", max_num_batched_tokens=16)


@pytest.fixture
def checkpoint() -> Checkpoint:
    """Eight gigabytes of weights in bfloat16, and 2 GiB of KV for its longest sequence."""
    config = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 16384}
    tensors = [
        StoredTensor(f"model.layers.{number}.mlp.up_proj.weight", "BF16", (4096, 32768), Path("x"))
        for number in range(32)
    ]
    return Checkpoint(Path("x"), config, {tensor.name: tensor for tensor in tensors})


def test_what_fits_is_not_refused(checkpoint: Checkpoint) -> None:
    assert refusal(checkpoint, ARCHITECTURE, CONFIG, Devices(1, 16 * GIB)) is None


def test_weights_that_are_too_large_are_advised_to_be_smaller(checkpoint: Checkpoint) -> None:
    reason = refusal(checkpoint, ARCHITECTURE, CONFIG, Devices(1, 7 * GIB))
    assert reason == (
        "8.00 GiB of weights and 16384 tokens of context do not fit into the 7.00 GiB that are free; "
        "what would fit: quantization_config={'bits': 8}; or quantization_config={'bits': 4}"
    )


def test_every_piece_of_advice_would_fit(checkpoint: Checkpoint) -> None:
    devices = Devices(4, 5 * GIB)
    reason = refusal(checkpoint, ARCHITECTURE, CONFIG, devices)
    assert reason is not None
    assert "tensor_parallel_size=4" in reason or "tensor_parallel_size=2" in reason
    size = int(reason.partition("tensor_parallel_size=")[2][0])
    shared = replace(CONFIG, tensor_parallel_size=size)
    assert refusal(checkpoint, ARCHITECTURE, shared, devices) is None
    quantized = replace(CONFIG, quantization=QuantizationConfig.named("int4"))
    assert refusal(checkpoint, ARCHITECTURE, quantized, devices) is None


def test_a_context_that_fits_is_told_and_does_fit(checkpoint: Checkpoint) -> None:
    quantized = replace(CONFIG, quantization=QuantizationConfig.named("int4"))
    devices = Devices(1, 4 * GIB)
    reason = refusal(checkpoint, ARCHITECTURE, quantized, devices)
    assert reason is not None
    assert "'bits'" not in reason
    tokens = int(reason.rpartition("max_out_tokens=")[2])
    assert 0 < tokens < 16384
    shorter = replace(quantized, max_model_len=tokens)
    assert refusal(checkpoint, ARCHITECTURE, shorter, devices) is None
    assert memory_plan(checkpoint, ARCHITECTURE, shorter, devices.free_bytes).refusal is None


class Started(Exception):
    """Raised where an LLM would start."""


def start_nothing(_: str, **options: Any) -> None:
    raise Started(options["quantization"])


def test_where_nothing_helps_the_machine_is_too_small(checkpoint: Checkpoint) -> None:
    reason = refusal(checkpoint, ARCHITECTURE, CONFIG, Devices(1, GIB // 4))
    assert reason is not None
    assert reason.endswith("nor does any quantization, number of ranks or context here: give it a larger machine")


@pytest.mark.parametrize("start", [optimize_with_deepspeed, HybridInference])
def test_the_advice_to_quantize_works_as_it_is_said(
    start: Callable[..., object], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "LLM", start_nothing)
    with pytest.raises(Started, match=r"^int8$"):
        start(model=make_decoder(), tokenizer=tokenizer, dtype="fp32", quantization_config={"bits": 8})


def test_weights_beyond_all_memory_are_refused_before_anything_is_loaded(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "measure_free_host_bytes", lambda: 2 << 20)
    monkeypatch.setattr(starting, "LLM", None)
    with pytest.raises(OutOfMemory, match=r"^7\.00 MiB of weights and 256 tokens of context do not fit"):
        init_inference(make_decoder().to(torch.float32), {"dtype": "fp32"}, tokenizer)


def test_an_engine_without_room_for_its_context_says_what_would_fit(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTLLM_KV_CACHE_MEMORY", "0.0003")
    with pytest.raises(OutOfMemory, match=r"what would fit: .*max_out_tokens=128") as caught:
        init_inference(make_decoder(), tokenizer=tokenizer)
    assert "\n" not in str(caught.value)
