"""The small checkpoints of tests/engine/conftest.py, converted for two and three ranks."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed

Converted = Callable[[str, int], Path]


@pytest.fixture(scope="session")
def converted(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The directory of the named model for so many ranks. Shared: tests must leave it as it is."""

    @cache
    def make(name: str, size: int) -> Path:
        out = tmp_path_factory.mktemp("converted") / f"{name}-{size}"
        return convert_checkpoint_to_deepspeed(checkpoint(name), out, size).parent

    return make
