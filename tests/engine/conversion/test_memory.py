"""A conversion holds a tensor or two of its own, however large the model."""

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
import torch
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed

def private_bytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

source, ranks, back = sys.argv[1:]
seen = []
for path, out, size in ((source, ranks, 2), (ranks, back, 1)):
    convert_checkpoint_to_deepspeed(path, out, size, lambda _: seen.append(private_bytes()))
print(json.dumps([seen[0], max(seen)]))
"""


@pytest.mark.parametrize("is_pickled", [False, True])
def test_tensors_are_in_memory_one_at_a_time(tmp_path: Path, is_pickled: bool) -> None:
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=4,
        num_attention_heads=16,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "source")
    if is_pickled:
        (tmp_path / "source" / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "source" / "pytorch_model.bin")
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    largest = max(parameter.nbytes for parameter in model.parameters())
    places = [tmp_path / "source", tmp_path / "ranks", tmp_path / "back"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *places], capture_output=True, text=True, timeout=180, check=True
    )
    before, peak = json.loads(done.stdout)
    assert num_bytes > 16 * largest
    assert peak - before < 3 * largest
