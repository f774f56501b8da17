"""Builds the executor that serves a checkpoint: on one device, over ranks, or over peers."""

import time
from dataclasses import replace

from distllm.engine.config import EngineConfig
from distllm.engine.device import measure_free_bytes, num_cuda_devices
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.executor.tensor_parallel import start_tensor_parallel
from distllm.engine.interface import Executor
from distllm.engine.model_runner import ModelRunner
from distllm.engine.offload.errors import check_offload
from distllm.engine.pipeline.coordinator.snapshot import OnCluster
from distllm.engine.pool_size import size_pool
from distllm.engine.progress import OnLost, Progress
from distllm.engine.served_model import prepare_model


def build_executor(
    config: EngineConfig,
    on_progress: Progress,
    on_lost: OnLost = lambda _: None,
    on_cluster: OnCluster = lambda _: None,
) -> Executor:
    """Load `config.model`, put the kernels under it and size its KV pool.

    `on_lost` is called in another thread when ranks are lost, for then the step under way never ends.
    `on_cluster` is called in threads of its own where the model is served by a cluster.

    Raises CheckpointError, OutOfMemory or ValueError, each with one line for the operator.
    """
    if config.cluster is not None:
        from distllm.engine.executor.pipeline import start_pipeline

        return start_pipeline(config, on_progress, on_lost, on_cluster)
    config = replace(config, tensor_parallel_size=num_ranks(config))
    check_offload(config, config.device)
    if config.tensor_parallel_size != 1:
        return start_tensor_parallel(config, on_progress, on_lost)
    started_s = time.monotonic()
    served = prepare_model(config, on_progress)
    on_progress("sizing the KV cache", 1.0)
    need = served.pool_need(config)
    num_blocks = size_pool(served.pool_config(config, need.block_bytes), need, measure_free_bytes(served.device))
    runner = ModelRunner(served.forward_over(num_blocks))
    load_s = time.monotonic() - started_s
    return LocalExecutor(runner, served.info(num_blocks, need.block_bytes, served.weight_bytes, load_s))


def num_ranks(config: EngineConfig) -> int:
    """How many share the model: as many as asked for, else one a CUDA device."""
    if config.tensor_parallel_size is not None:
        return config.tensor_parallel_size
    return 1 if config.device == "cpu" else max(1, num_cuda_devices())
