"""Finding the compiled kernels, living without them, and the threads behind them."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import distllm.engine.kernels.library as library_module
from distllm.engine.kernels.library import LEVELS, KernelLibrary, KernelsUnavailable, load_library, runnable_levels
from distllm.engine.kernels.ops import CpuKernels, load_kernels

PROJECT = Path(__file__).resolve().parents[3]


def test_an_empty_directory_gives_a_reason_and_a_remedy(tmp_path: Path) -> None:
    loaded = load_kernels(directory=tmp_path)
    assert isinstance(loaded, KernelsUnavailable)
    assert "install g++" in loaded.reason


def test_a_damaged_library_gives_the_loader_s_reason(tmp_path: Path) -> None:
    (tmp_path / "_cpu_portable.so").write_bytes(b"not a shared object")
    loaded = load_kernels(directory=tmp_path)
    assert isinstance(loaded, KernelsUnavailable)
    assert "could not be loaded" in loaded.reason


def test_the_best_level_that_was_built_serves(tmp_path: Path) -> None:
    """As where the compiler did not know the flags of the higher levels."""
    source = next(Path(library_module.__file__).parent.glob("_cpu_portable*.so"))
    shutil.copy(source, tmp_path / "_cpu_portable.so")
    loaded = load_library(directory=tmp_path)
    assert isinstance(loaded, KernelLibrary)
    assert loaded.level == "portable"
    missing = load_library(runnable_levels()[-1], tmp_path)
    assert isinstance(missing, KernelsUnavailable) or runnable_levels() == ("portable",)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="portable, avx2"):
        load_library("avx1024")


def test_the_best_runnable_level_is_the_default() -> None:
    loaded = load_library()
    assert isinstance(loaded, KernelLibrary)
    assert loaded.level == runnable_levels()[-1]
    assert set(runnable_levels()) <= set(LEVELS)


def test_a_build_without_a_compiler_succeeds_and_builds_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext"]
    command += ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    built = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert built.returncode == 0, built.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_several_python_threads_may_call_in_turn(kernels: CpuKernels) -> None:
    x, packed = torch.randn(30, 200), kernels.pack_linear(torch.randn(300, 200))
    expected = kernels.linear(x, packed)
    failures: list[int] = []

    def call(index: int) -> None:
        outs = [kernels.linear(x, packed) for _ in range(50)]
        if not all(torch.equal(out, expected) for out in outs):
            failures.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


def test_the_number_of_threads_can_change(kernels: CpuKernels) -> None:
    loaded = load_kernels(kernels.isa, num_threads=1)
    assert isinstance(loaded, CpuKernels)
    x, packed = torch.randn(30, 200), loaded.pack_linear(torch.randn(300, 200))
    expected = loaded.linear(x, packed)
    for count in (3, 1, 2):
        loaded.num_threads = count
        assert loaded.num_threads == count
        assert torch.equal(loaded.linear(x, packed), expected)
    with pytest.raises(ValueError, match="num_threads"):
        loaded.num_threads = 0
    assert torch.equal(loaded.linear(x, packed), expected)


FORK = """
import os, torch
from distllm.engine.kernels.ops import load_kernels
kernels = load_kernels(num_threads=3)
x, packed = torch.randn(30, 200), kernels.pack_linear(torch.randn(300, 200))
expected = kernels.linear(x, packed)
child = os.fork()
if child == 0:
    os._exit(0 if all(torch.equal(kernels.linear(x, packed), expected) for _ in range(20)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(kernels.linear(x, packed), expected)
"""


def test_a_forked_child_gets_threads_of_its_own_and_exits() -> None:
    finished = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr


def test_numerics_name_the_instruction_and_the_order(kernels: CpuKernels) -> None:
    assert kernels.numerics.startswith("cpu1-muladd" if kernels.isa == "portable" else "cpu1-fma")
    assert kernels.numerics.endswith(kernels.bf16_variant)
    assert kernels.bf16_variant in (("fma", "dot") if kernels.has_bf16_dot else ("fma",))
