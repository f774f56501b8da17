"""Loads a checkpoint and builds the executor that serves it: the one place where the parts of the engine meet."""

import time
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from distllm.engine.attention.registry import choose_backend
from distllm.engine.checkpoint import open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.context_length import resolve_length, supported_length
from distllm.engine.device import resolve_device, resolve_dtype
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.injection.attention import PagedCache, attach
from distllm.engine.injection.probe import discover_layers
from distllm.engine.interface import BLOCK_SIZE, Executor, ExecutorInfo
from distllm.engine.kv_cache import PoolNeed, block_bytes, size_pool
from distllm.engine.loading import load_config, load_model
from distllm.engine.memory import measure_free_bytes
from distllm.engine.model_runner import ModelRunner

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of it that is done."""


def build_executor(config: EngineConfig, on_progress: Progress) -> Executor:
    """Load `config.model` and size its KV pool.

    Raises CheckpointError, OutOfMemory or ValueError, each with one line for the operator.
    """
    started_s = time.monotonic()
    device = resolve_device(config.device)
    checkpoint = open_checkpoint(Path(config.model))
    dtype = resolve_dtype(config.dtype, checkpoint, device)
    max_model_len = resolve_length(config.max_model_len, supported_length(checkpoint.text_config))
    on_progress("reading the checkpoint", 0.0)
    model = load_model(checkpoint, load_config(checkpoint), dtype, device)
    layers = discover_layers(model)
    shapes = [layer.shape for layer in layers]
    backend = choose_backend(device)
    need = PoolNeed(block_bytes(shapes, dtype), max_model_len, config.max_num_seqs)
    num_blocks = size_pool(config, need, measure_free_bytes(device))
    cache = PagedCache(backend, shapes, num_blocks, dtype)
    for layer, paged in zip(layers, cache.layers, strict=True):
        attach(layer.module, paged)
    on_progress("ready", 1.0)
    info = ExecutorInfo(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_model_len=max_model_len,
        vocab_size=model.config.get_text_config().vocab_size,
        model_type=model.config.model_type,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        kernels=backend.name,
        numerics="torch",
        weight_bytes=_weight_bytes(model),
        kv_block_bytes=need.block_bytes,
        load_s=time.monotonic() - started_s,
    )
    return LocalExecutor(ModelRunner(model, cache), info)


def _weight_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
