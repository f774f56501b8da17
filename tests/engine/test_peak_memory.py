"""A start needs the memory of the weights once, and a little."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SCRIPT = """
import json, re, sys
from pathlib import Path
from distllm.engine.config import EngineConfig
from distllm.engine.factory import build_executor

def private_bytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

seen = []
def watch(activity, fraction):
    seen.append((activity, private_bytes()))

info = build_executor(EngineConfig(model=sys.argv[1], device="cpu", num_blocks=8), watch).info
before = next(size for activity, size in seen if activity == "packing the weights")
print(json.dumps([before, max(size for _, size in seen), private_bytes(), info.weight_bytes]))
"""


def test_weights_are_packed_one_at_a_time(tmp_path: Path) -> None:
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
    model.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    before, peak, after, weight_bytes = json.loads(done.stdout)
    first_weight = 3 * 1024 * 1024 * 2
    assert weight_bytes > 200 << 20
    assert peak - before < 1.1 * weight_bytes + first_weight
    assert after - before < 1.1 * weight_bytes
