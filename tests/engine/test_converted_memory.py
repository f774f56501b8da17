"""What is converted while it loads (another type, experts stored one by one) is in memory a weight at a time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig

SCRIPT = """
import ctypes, gc, json, re, sys
from pathlib import Path
from distllm.engine.config import EngineConfig
from distllm.engine.served_model import prepare_model

class Alone:
    "A group of two whose other rank is never heard: what is summed stays as it is."
    rank = local_rank = 1
    size, host = 2, 0
    def sum_rows(self, rows): return rows
    def gather_numbers(self, numbers): return [list(numbers)] * 2
    def pulse(self): pass

def kilobytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def watch(activity, _):
    if activity == "reading the checkpoint":
        gc.collect()
        library.mallopt(-3, 1 << 20)  # what is freed goes back, so that no measurement is helped by one before
        library.malloc_trim(0)
        before.append(kilobytes("VmRSS"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here

def grown(path, group, **options):
    "Bytes by which the process grew at most while it loaded, and those of the weights that it had to hold."
    config = EngineConfig(
        model=path, device="cpu", dtype="bfloat16", num_threads=1, max_model_len=32, num_blocks=8,
        max_num_batched_tokens=16, offload_dir=folder, **options
    )
    held = prepare_model(config, watch, group).weight_bytes
    return [(kilobytes("VmHWM") - before[-1]) << 10, held]

before, library = [], ctypes.CDLL(None)
_, folder, limit, small, *paths = sys.argv
for warm_up in (None, Alone()):  # what is imported or built once is not what is measured
    grown(small, warm_up)
print(json.dumps([
    {
        "rank": grown(path, Alone()),
        "offloaded": grown(path, None, offload="disk", weights_bytes=int(limit)),
        "offloaded rank": grown(path, Alone(), offload="disk", weights_bytes=int(limit)),
    }
    for path in paths
]))
"""
_SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 12,
    "max_position_embeddings": 64,
}
_KINDS = (
    (LlamaConfig(intermediate_size=4096, **_SHAPE), torch.float32),
    (LlamaConfig(intermediate_size=4096, **_SHAPE), torch.float16),
    (
        MixtralConfig(intermediate_size=1536, num_local_experts=4, **{**_SHAPE, "num_hidden_layers": 8}),
        torch.bfloat16,
    ),
)
"""What is stored to be served in bfloat16, of about as many weights each."""
_SLACK_BYTES = 32 << 20  # a few weights under way, and what any start leaves; a fifth of the weights


def save(config: PreTrainedConfig, stored: torch.dtype, path: Path) -> int:
    """Write a checkpoint; returns the bytes of its weights in bfloat16."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=stored)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.save_pretrained(path)
    return int(2 * model.num_parameters())


def test_the_peak_is_that_of_a_checkpoint_that_needs_no_conversion(tmp_path: Path) -> None:
    small = LlamaConfig(intermediate_size=64, **{**_SHAPE, "num_hidden_layers": 1})
    save(small, torch.bfloat16, tmp_path / "small")
    paths = [tmp_path / str(number) for number in range(len(_KINDS))]
    sizes = [save(config, stored, path) for (config, stored), path in zip(_KINDS, paths, strict=True)]
    arguments = [tmp_path, max(sizes) // 3, tmp_path / "small", *paths]
    command = [sys.executable, "-c", SCRIPT.replace("\\\\", "\\"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for weight_bytes, found in zip(sizes, json.loads(done.stdout.splitlines()[-1]), strict=True):
        peak, held = found["rank"]
        assert weight_bytes > 150e6
        assert held < 0.52 * weight_bytes
        assert peak < held + _SLACK_BYTES
        assert found["offloaded"][0] < max(sizes) // 3 + _SLACK_BYTES
        assert found["offloaded rank"][0] < max(sizes) // 6 + _SLACK_BYTES
