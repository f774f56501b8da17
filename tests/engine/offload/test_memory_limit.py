"""Under a limit of 60 % of the weights, which the kernel enforces, an engine that offloads serves."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.memory_limit import MemoryLimit, NoCgroupError, memory_limit

SCRIPT = """
import json, sys
from distllm.engine.config import EngineConfig
from distllm.engine.factory import build_executor
from distllm.engine.interface import BlockId, SampleSpec, SequenceChunk, SequenceId, StepInput
from distllm.engine.sampling_params import SamplingParams

config = EngineConfig(
    model=sys.argv[1], device="cpu", max_num_batched_tokens=16, max_num_seqs=2, offload=sys.argv[2],
    offload_dir=sys.argv[1], num_threads=1
)
executor = build_executor(config, lambda *_: None)
tokens = []
for start in range(3):
    spec = SampleSpec(SamplingParams(temperature=0.0), seed=0, index=start)
    chunk = SequenceChunk(SequenceId(0), [5 + start], start, [BlockId(0)], spec)
    tokens.append(executor.submit(StepInput(start, [chunk])).result().chunks[0].token_id)
print(json.dumps([executor.info.weight_bytes, executor.info.streamed_bytes, tokens]))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint_of_a_gigabyte(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    shape = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 16, "num_attention_heads": 12}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=4000, max_position_embeddings=64, **shape)).bfloat16()
    model.to_empty(device="cpu")
    for number, parameter in enumerate(model.parameters()):
        parameter.data.fill_(0.001 * (number % 7))
    path = tmp_path_factory.mktemp("gigabyte")
    model.save_pretrained(path)
    yield path
    (path / "model.safetensors").unlink()


@pytest.fixture
def limit(checkpoint_of_a_gigabyte: Path) -> Iterator[MemoryLimit]:
    limit_bytes = int(0.6 * (checkpoint_of_a_gigabyte / "model.safetensors").stat().st_size)
    try:
        with memory_limit(limit_bytes) as limit:
            yield limit
    except NoCgroupError as error:
        pytest.skip(str(error))


def run(limit: MemoryLimit, path: Path, offload: str) -> "subprocess.CompletedProcess[str]":
    command = limit.wrap([sys.executable, "-c", SCRIPT, str(path), offload])
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_it_serves_with_layers_on_the_disk(limit: MemoryLimit, checkpoint_of_a_gigabyte: Path) -> None:
    done = run(limit, checkpoint_of_a_gigabyte, "disk")
    assert done.returncode == 0, done.stderr
    weight_bytes, streamed_bytes, tokens = json.loads(done.stdout.splitlines()[-1])
    assert weight_bytes > 1 << 30
    assert 0.4 * weight_bytes < streamed_bytes < weight_bytes
    assert len(tokens) == 3


def test_without_offloading_it_is_ended(limit: MemoryLimit, checkpoint_of_a_gigabyte: Path) -> None:
    assert run(limit, checkpoint_of_a_gigabyte, "none").returncode != 0
