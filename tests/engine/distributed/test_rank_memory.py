"""A rank of two needs half of the weights and a little, in all memory that counts as its own."""

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
from distllm.engine.served_model import prepare_model

class Alone:
    "A group of two whose other rank is never heard: what is summed stays as it is."
    rank = local_rank = int(sys.argv[2])
    size, host = 2, 0
    def sum_rows(self, rows): return rows
    def gather_numbers(self, numbers): return [list(numbers)] * 2

def kilobytes(name):
    return int(re.search(rf"{name}:\\\\s+(\\\\d+)", Path("/proc/self/status").read_text())[1])

def watch(activity, _):
    if activity == "reading the checkpoint":
        seen.append(kilobytes("VmRSS"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here

seen = []
served = prepare_model(EngineConfig(model=sys.argv[1], device="cpu"), watch, Alone())
print(json.dumps([(kilobytes("VmHWM") - seen[0]) << 10, served.weight_bytes]))
"""


@pytest.fixture(scope="module")
def checkpoint_of_1b(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The shape of a Llama of 1.2 billion parameters in bfloat16, and its bytes."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    path = tmp_path_factory.mktemp("1b")
    model.save_pretrained(path)
    return path, sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_own_part_alone(checkpoint_of_1b: tuple[Path, int], rank: int) -> None:
    path, weight_bytes = checkpoint_of_1b
    command = [sys.executable, "-c", SCRIPT.replace("\\\\", "\\"), str(path), str(rank)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    peak, held = json.loads(done.stdout.splitlines()[-1])
    assert weight_bytes > 2.3e9
    assert held < 0.51 * weight_bytes
    assert peak < 1.15 * weight_bytes / 2
