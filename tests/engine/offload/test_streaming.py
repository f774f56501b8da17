"""An engine whose layers stream computes the very bits of one that holds them all."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distllm.engine.config import EngineConfig
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.factory import build_executor
from distllm.engine.interface import BlockId, SequenceChunk, SequenceId

KINDS = ("llama", "llama-odd", "qwen3", "phi3", "gemma2", "gpt2", "opt", "mixtral", "qwen3_moe", "gpt_oss")
TOKEN_IDS = tuple(range(2, 42))
OTHER_IDS = tuple(range(90, 60, -1))


def build(config: EngineConfig) -> LocalExecutor:
    executor = build_executor(config, lambda _activity, _fraction: None)
    assert isinstance(executor, LocalExecutor)
    return executor


def chunk(token_ids: Sequence[int], start: int, end: int, blocks: Sequence[int]) -> SequenceChunk:
    table = [BlockId(block) for block in blocks]
    return SequenceChunk(SequenceId(blocks[0]), token_ids[start:end], start, table, None)


def run_steps(executor: LocalExecutor) -> Tensor:
    """Logits of every token of a few mixed steps."""
    first, second = [7, 3, 11], [5, 9]
    steps = (
        [chunk(TOKEN_IDS, 0, 30, first)],
        [chunk(TOKEN_IDS, 30, 31, first), chunk(OTHER_IDS, 0, 13, second)],
        *([chunk(TOKEN_IDS, 31 + n, 32 + n, first), chunk(OTHER_IDS, 13 + n, 14 + n, second)] for n in range(4)),
    )
    return torch.cat(
        [executor.runner.forward(step, range(sum(len(part.token_ids) for part in step))) for step in steps]
    )


@pytest.fixture
def config(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., EngineConfig]:
    def make(kind: str, **changes: Any) -> EngineConfig:
        plain = EngineConfig(
            model=str(checkpoint(kind)), device="cpu", max_model_len=128, num_blocks=40, num_threads=2
        )
        return replace(plain, offload_dir=str(tmp_path), **changes)

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_layers_compute_the_same_bits(
    config: Callable[..., EngineConfig], caplog: pytest.LogCaptureFixture, kind: str, dtype: str
) -> None:
    whole = build(config(kind, dtype=dtype))
    expected = run_steps(whole)
    with caplog.at_level(logging.INFO, "distllm.engine"):
        limit = int(whole.info.weight_bytes * 0.95)
        streaming = build(config(kind, dtype=dtype, offload="disk", weights_bytes=limit))
    assert "0 of 3 layers stay in memory; 3 stream from disk" in caplog.text
    assert torch.equal(run_steps(streaming), expected)
    streaming.close()
