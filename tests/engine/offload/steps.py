"""Builds executors and runs a few mixed steps on them, of which every logit is kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.config import EngineConfig
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.factory import build_executor
from distllm.engine.interface import BlockId, SequenceChunk, SequenceId

_TOKEN_IDS = tuple(range(2, 42))
_OTHER_IDS = tuple(range(90, 60, -1))


def build(config: EngineConfig) -> LocalExecutor:
    executor = build_executor(config, lambda _activity, _fraction: None)
    assert isinstance(executor, LocalExecutor)
    return executor


def run_steps(executor: LocalExecutor) -> Tensor:
    """Logits of every token of steps that mix two sequences: [num_tokens, vocab_size]."""
    first, second = [7, 3, 11], [5, 9]
    steps = (
        [_chunk(_TOKEN_IDS, 0, 30, first)],
        [_chunk(_TOKEN_IDS, 30, 31, first), _chunk(_OTHER_IDS, 0, 13, second)],
        *(
            [_chunk(_TOKEN_IDS, 31 + n, 32 + n, first), _chunk(_OTHER_IDS, 13 + n, 14 + n, second)]
            for n in range(4)
        ),
    )
    return torch.cat([_forward(executor, step) for step in steps])


def _forward(executor: LocalExecutor, step: Sequence[SequenceChunk]) -> Tensor:
    num_tokens = sum(len(chunk.token_ids) for chunk in step)
    return executor.runner.forward(build_step_tensors(step, range(num_tokens)))


def _chunk(token_ids: Sequence[int], start: int, end: int, blocks: Sequence[int]) -> SequenceChunk:
    table = [BlockId(block) for block in blocks]
    return SequenceChunk(SequenceId(blocks[0]), token_ids[start:end], start, table, None)
