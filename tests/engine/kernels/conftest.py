"""Every test that takes `kernels` runs at each instruction level that is built and that this CPU runs."""

from functools import cache

import pytest

from distllm.engine.kernels.library import runnable_levels
from distllm.engine.kernels.ops import CpuKernels, load_kernels


@cache
def kernels_at(level: str) -> CpuKernels:
    loaded = load_kernels(level, num_threads=2)
    assert isinstance(loaded, CpuKernels)
    return loaded


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernels" in metafunc.fixturenames:
        levels = runnable_levels()
        assert levels, "the kernels are not built: pip install -e ."
        metafunc.parametrize("kernels", levels, indirect=True)


@pytest.fixture
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return kernels_at(request.param)
