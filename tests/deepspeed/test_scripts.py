"""The issue's Python as a plain script, without a main guard: it runs as written and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import is_soon

SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
import torch
from tests.deepspeed.conftest import make_decoder
from transformers import AutoTokenizer
from distllm import optimize_with_deepspeed
from distllm.engine.embedded import checkpoint_path

model = make_decoder()
tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
optimized = optimize_with_deepspeed(
    model=model,
    tokenizer=tokenizer,
    tensor_parallel_size=2,
    dtype=torch.float16,
    use_quantization=True,
    quantization_config={"bits": 8, "group_size": 128, "mlp_extra_grouping": True},
)
print("ANSWER", repr(optimized.generate("DeepSpeed is", max_new_tokens=50)), flush=True)
if "--wait" in sys.argv:
    sys.stdin.read()
"""


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts SCRIPT with a temporary directory of its own, which is `tmp_path / "tmp"`."""
    file, scratch = tmp_path / "script.py", tmp_path / "tmp"
    file.write_text(SCRIPT)
    scratch.mkdir()
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        environment = {"HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch), "PYTHONPATH": os.getcwd()}
        environment |= {"DISTLLM_RANK_TIMEOUT_S": "30", "DISTLLM_KV_CACHE_MEMORY": "0.05"}
        process = subprocess.Popen(
            [sys.executable, str(file), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("deepspeed*")}


def test_the_script_runs_and_tells_what_was_sharded_quantized_and_injected(
    start_script: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    script = start_script()
    output, _ = script.communicate(timeout=240)
    assert script.returncode == 0, output
    assert "ANSWER '" in output
    for rank in (0, 1):
        for words in ("sharded LlamaForCausalLM", "quantized 2 w8, 8 w8g128, 6 w8g64", "injected "):
            (line,) = [line for line in output.splitlines() if f"rank {rank} of 2 {words}" in line]
            assert line.endswith(" s")
    assert output.count("instead of float16") == 1
    assert "of weights to shared memory in" in output
    assert not list((tmp_path / "tmp").glob("distllm-*"))


def test_nothing_is_left_of_a_script_that_is_killed(
    start_script: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    segments_before = segments()
    script = start_script("--wait")
    assert script.stdout is not None
    assert any(line.startswith("ANSWER") for line in script.stdout)
    family = psutil.Process(script.pid).children(recursive=True)
    assert sum("distllm.engine.distributed.rank" in process.cmdline() for process in family) == 1
    assert list((tmp_path / "tmp").glob("distllm-model-*"))
    script.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    assert is_soon(lambda: not list((tmp_path / "tmp").glob("distllm-*")))
    new = segments() - segments_before
    assert is_soon(lambda: new.isdisjoint(segments()))  # another test's are there for a moment
