"""When DeepSpeed's shared-memory operation is not used, and what is cleaned up after it."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from distllm.engine.distributed import shared_memory_op
from distllm.engine.distributed.deepspeed_group import why_gathered
from distllm.engine.distributed.shared_memory_op import (
    forget_segments,
    new_name,
    segment_paths,
    stale_segments,
    why_not,
)

Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_memory_op, "_SHARED_MEMORY", tmp_path)
    return tmp_path


def test_more_ranks_than_cores_do_not_spin() -> None:
    assert why_not(3, 2) == "3 ranks on 2 cores would spin for each other"


def test_a_small_shared_memory_is_told_with_the_remedy(
    shared_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(64 << 20, 0, 64 << 20))
    assert why_not(2, 2) == "/dev/shm has 64 MiB free, and it takes 132 (docker: --shm-size)"


def test_a_compiler_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no g++\nand more")

    monkeypatch.setattr(shared_memory_op, "load_op", fail)
    assert why_not(2, 2) == "it cannot be built: no g++"


def test_ranks_of_several_hosts_or_on_gpus_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert why_gathered("cuda", 2, 2, 8) == "they are on GPUs"
    assert why_gathered("cpu", 4, 2, 8) == "2 of 4 ranks are on this host"


def test_segments_of_a_dead_run_are_found_and_those_of_a_living_one_are_not(shared_memory: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    name = new_name()
    assert name.startswith(str(os.getpid()))
    living = segment_paths(name, 2)
    left = segment_paths(f"{dead.pid}{name[-9:]}", 2)
    foreign = shared_memory / "deepspeed_allreduce_buffer_0_10.0.0.1_29500_0"
    for path in (*living, *left, foreign):
        path.touch()
    assert sorted(stale_segments()) == sorted(left)
    forget_segments(stale_segments())
    assert {*shared_memory.iterdir()} == {*living, foreign}
