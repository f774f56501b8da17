"""A start needs the memory of the weights once, and a little."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SCRIPT = """
import json, re, sys
from pathlib import Path
from distllm.engine.config import EngineConfig
from distllm.engine.factory import build_executor
from distllm.engine.quantization.config import QuantizationConfig

def private_bytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

seen = []
def watch(activity, fraction):
    seen.append((activity, private_bytes()))

quantization = QuantizationConfig.named(sys.argv[2]) if len(sys.argv) > 2 else None
config = EngineConfig(model=sys.argv[1], device="cpu", num_blocks=8, quantization=quantization)
info = build_executor(config, watch).info
before = next(size for activity, size in seen if activity == "packing the weights")
print(json.dumps([before, max(size for _, size in seen), private_bytes(), info.weight_bytes]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 200 MiB in bf16."""
    path = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=16,
        max_position_embeddings=128,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.save_pretrained(path)
    return path


def measure(path: Path, *arguments: str) -> tuple[int, int, int, int]:
    """Private bytes before, at most and after a start, and those of its weights."""
    command = [sys.executable, "-c", SCRIPT, str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    before, peak, after, weight_bytes = json.loads(done.stdout)
    return before, peak, after, weight_bytes


def test_weights_are_packed_one_at_a_time(large: Path) -> None:
    before, peak, after, weight_bytes = measure(large)
    first_weight = 3 * 1024 * 1024 * 2
    assert weight_bytes > 200 << 20
    assert peak - before < 1.1 * weight_bytes + first_weight
    assert after - before < 1.1 * weight_bytes


@pytest.mark.parametrize(("name", "part"), [("int8", 0.51), ("int4", 0.33)])
def test_quantized_weights_are_made_one_at_a_time(large: Path, name: str, part: float) -> None:
    """The dense weights are never whole in memory; what one of them takes while it is quantized is given back."""
    before, peak, after, weight_bytes = measure(large, name)
    dense_bytes = (6 * (4 * 1024 * 1024 + 3 * 4096 * 1024) + 2 * 8000 * 1024) * 2
    rounding = 64 << 20  # copies of the largest weight in codes, and of some of its rows in float32
    assert weight_bytes < part * dense_bytes
    assert peak - before < 1.1 * weight_bytes + rounding < dense_bytes
    assert after - before < 1.1 * weight_bytes + rounding
