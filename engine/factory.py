"""Loads a checkpoint and builds the executor that serves it: the one place where the parts of the engine meet."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from distllm.engine.activation import activation_bytes
from distllm.engine.checkpoint import open_checkpoint
from distllm.engine.compute import Compute, choose_compute
from distllm.engine.config import EngineConfig
from distllm.engine.context_length import resolve_length, supported_length
from distllm.engine.device import measure_free_bytes, resolve_device
from distllm.engine.dtypes import resolve_dtype
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.injection.attention import PagedCache, attach
from distllm.engine.injection.injector import fuse_modules
from distllm.engine.injection.packing import leave_packed, pack_weights
from distllm.engine.injection.probe import DiscoveredLayer, discover_layers
from distllm.engine.injection.rotary import freeze_rotary
from distllm.engine.interface import BLOCK_SIZE, Executor, ExecutorInfo
from distllm.engine.loading import load_config, load_model
from distllm.engine.memory import giving_back_freed_memory
from distllm.engine.model_runner import ModelRunner
from distllm.engine.offload.decoder_layers import find_decoder_layers
from distllm.engine.offload.offloader import Offloader
from distllm.engine.offload.start import open_lane, settle_layers
from distllm.engine.pool_size import PoolNeed, size_pool
from distllm.engine.self_check import NUM_BLOCKS, check_forward, plain_logits

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of it that is done, in [0, 1]."""


def build_executor(config: EngineConfig, on_progress: Progress) -> Executor:
    """Load `config.model`, put the kernels under it and size its KV pool.

    Raises CheckpointError, OutOfMemory or ValueError, each with one line for the operator.
    """
    started_s = time.monotonic()
    device = resolve_device(config.device)
    checkpoint = open_checkpoint(Path(config.model))
    dtype: torch.dtype = getattr(torch, resolve_dtype(config.dtype, checkpoint, device.type))
    compute = choose_compute(config, device, dtype)
    on_progress("reading the checkpoint", 0.0)
    lane = open_lane(config, device)
    host = device if lane is None else torch.device("cpu")
    model = load_model(checkpoint, load_config(checkpoint), dtype, host)
    layers = discover_layers(model)
    max_model_len = resolve_length(config.max_model_len, supported_length(checkpoint.text_config))
    freeze_rotary(model, max_model_len)
    offloader = None if lane is None else Offloader(find_decoder_layers(model, [it.module for it in layers]), lane)
    with nullcontext() if offloader is None else giving_back_freed_memory():
        weight_bytes = _inject_weights(model, compute, device, offloader, on_progress)
    need = _pool_need(config, model, layers, max_model_len)
    streamed_bytes = 0
    if offloader is not None:
        other_bytes = weight_bytes - sum(offloader.layer_bytes)
        settled = settle_layers(
            offloader, config, need, other_bytes, measure_free_bytes(device), partial(on_progress, "reading back")
        )
        config, streamed_bytes = settled.config, settled.streamed_bytes
    expected = plain_logits(model)
    if compute.kernels is not None:
        layers = fuse_modules(model, layers, compute.kernels)
    check_forward(ModelRunner(model, _attach_cache(layers, compute, NUM_BLOCKS, dtype)), expected)
    on_progress("sizing the KV cache", 1.0)
    num_blocks = size_pool(config, need, measure_free_bytes(device))
    runner = ModelRunner(model, _attach_cache(layers, compute, num_blocks, dtype))
    info = ExecutorInfo(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_model_len=max_model_len,
        vocab_size=model.config.get_text_config().vocab_size,
        model_type=model.config.model_type,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        kernels=compute.name,
        numerics=compute.numerics,
        weight_bytes=weight_bytes,
        kv_block_bytes=need.block_bytes,
        load_s=time.monotonic() - started_s,
        streamed_bytes=streamed_bytes,
    )
    return LocalExecutor(runner, info)


def _inject_weights(
    model: PreTrainedModel,
    compute: Compute,
    device: torch.device,
    offloader: Offloader | None,
    on_progress: Progress,
) -> int:
    """Pack the weights where there are kernels, and take layers out of memory. Returns the bytes of all weights."""
    moved_bytes = 0
    report = partial(on_progress, "packing the weights")
    if compute.kernels is not None:
        torch.set_num_threads(1)  # torch would split rows over threads where our kernels do not
        on_packed = leave_packed if offloader is None else offloader.take_packed
        moved_bytes = pack_weights(model, compute.kernels, report, on_packed)
    elif offloader is not None:
        moved_bytes = offloader.take_parameters(model, device)
    return moved_bytes + sum(int(parameter.nbytes) for parameter in model.parameters())


def _pool_need(
    config: EngineConfig, model: PreTrainedModel, layers: list[DiscoveredLayer], max_model_len: int
) -> PoolNeed:
    text = model.config.get_text_config()
    return PoolNeed(
        block_bytes=sum(layer.shape.num_bytes(BLOCK_SIZE, model.dtype) for layer in layers),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        activation_bytes=activation_bytes(config.max_num_batched_tokens, text.vocab_size, text.hidden_size),
    )


def _attach_cache(
    layers: list[DiscoveredLayer], compute: Compute, num_blocks: int, dtype: torch.dtype
) -> PagedCache:
    cache = PagedCache(compute.attention, [layer.shape for layer in layers], num_blocks, dtype)
    for layer, paged in zip(layers, cache.layers, strict=True):
        attach(layer.module, paged)
    return cache
