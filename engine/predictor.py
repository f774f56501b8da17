"""Logits of windows of token ids from a model as it is served: in this process, or in one of its own."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.executor.tensor_parallel import TensorParallelExecutor
from distllm.engine.factory import build_executor
from distllm.engine.interface import BLOCK_SIZE, BlockId, SequenceChunk, SequenceId
from distllm.engine.pool_size import OutOfMemory

Predict = Callable[[Sequence[int]], Tensor]
"""Logits after each token of a window: float32 [num_tokens, vocab_size]."""

LOADING_ERRORS = (CheckpointError, OutOfMemory, ValueError)
"""What build_executor raises: each has one line for the operator."""


@contextmanager
def predictor(config: EngineConfig, max_tokens: int) -> Iterator[Predict]:
    """The model of `config`, for windows of up to `max_tokens`. Raises LOADING_ERRORS."""
    num_blocks = -(-max_tokens // BLOCK_SIZE)
    sized = replace(
        config,
        num_blocks=num_blocks,
        max_model_len=num_blocks * BLOCK_SIZE,
        max_num_batched_tokens=max(config.max_num_batched_tokens, max_tokens),
    )
    executor = build_executor(sized, lambda _activity, _fraction: None, _end)
    assert isinstance(executor, LocalExecutor | TensorParallelExecutor)
    runner = executor.runner

    def predict(window: Sequence[int]) -> Tensor:
        blocks = [BlockId(block) for block in range(-(-len(window) // BLOCK_SIZE))]
        chunk = SequenceChunk(SequenceId(0), window, 0, blocks, None)
        return runner.forward(build_step_tensors([chunk], range(len(window))))

    try:
        yield predict
    finally:
        executor.close()


@contextmanager
def separate_predictor(config: EngineConfig, max_tokens: int) -> Iterator[Predict]:
    """The same in a process of its own: one process can be a rank of one model only. Raises ValueError."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, config, max_tokens), daemon=True)
    process.start()
    there.close()

    def predict(window: Sequence[int]) -> Tensor:
        here.send(list(window))
        return torch.frombuffer(bytearray(_receive(here)), dtype=torch.float32).view(len(window), -1)

    try:
        if reason := _receive(here):
            raise ValueError(reason.decode())
        yield predict
    finally:
        here.close()
        process.join()


def _receive(connection: Connection) -> bytes:
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):
        raise ValueError("the process of the other model ended before it answered") from None


def _serve(connection: Connection, config: EngineConfig, max_tokens: int) -> None:
    """Say why there is no model, or nothing; then answer each window with its logits until the other end closes."""
    try:
        with predictor(config, max_tokens) as predict:
            connection.send_bytes(b"")
            while True:
                connection.send_bytes(predict(connection.recv()).contiguous().cpu().numpy().data.cast("B"))
    except (EOFError, OSError):  # whoever asked has all answers, or has gone
        return
    except LOADING_ERRORS as error:
        connection.send_bytes(str(error).encode())


def _end(reason: str) -> None:
    """A rank was lost: the thread that waits for it would wait for ever."""
    sys.stderr.write(f"distllm: {reason}\n")
    os._exit(1)
