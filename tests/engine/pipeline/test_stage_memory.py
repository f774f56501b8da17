"""A stage needs the memory of its own layers and a little, in all memory that counts as its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SCRIPT = r"""
import json, re, sys
from pathlib import Path
from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.served_model import prepare_model

def kilobytes(name):
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

def start_counting():
    seen.append(kilobytes("VmRSS"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here

def watch(activity, _):
    if activity == "reading the checkpoint":
        peaks.append(kilobytes("VmHWM") - seen[-1])
        start_counting()

seen, peaks = [], []
layers = LayerRange(int(sys.argv[2]), int(sys.argv[3]), 8)
start_counting()
served = prepare_model(EngineConfig(model=sys.argv[1], device="cpu"), watch, layers=layers)
peaks.append(kilobytes("VmHWM") - seen[-1])
print(json.dumps([served.weight_bytes, *(peak << 10 for peak in peaks)]))
"""
MIB = 1 << 20
LAYER_BYTES = 2 * (4 * 1024 * 1024 + 3 * 4096 * 1024)
VOCABULARY_BYTES = 2 * 16000 * 1024


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 320 MiB in bf16, in files of which none is one layer's alone."""
    path = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=16000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=8,
        num_attention_heads=16,
        max_position_embeddings=128,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.save_pretrained(path, max_shard_size="100MB")
    return path


@pytest.mark.parametrize(
    ("begin", "end", "beside"), [(0, 2, VOCABULARY_BYTES), (3, 5, 0), (6, 8, VOCABULARY_BYTES)]
)
def test_a_stage_reads_its_own_layers_alone(large: Path, begin: int, end: int, beside: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(large), str(begin), str(end)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    held, planned, peak = json.loads(done.stdout.splitlines()[-1])
    own = (end - begin) * LAYER_BYTES + beside
    assert held == pytest.approx(own, rel=0.01)
    assert planned < 40 * MIB  # no more than the model's class
    assert peak < 1.1 * own + 32 * MIB  # a weight is there twice while it is packed
