"""Opens what layers are kept in, and divides the memory between resident layers, the ring and the KV pool."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distllm.engine.config import EngineConfig
from distllm.engine.offload.disk_file import DEFAULT_DIRECTORY, DiskFile
from distllm.engine.offload.errors import OffloadError
from distllm.engine.offload.lanes import DiskLane, Lane
from distllm.engine.offload.offloader import Offloader
from distllm.engine.offload.readers import PlainReader
from distllm.engine.offload.residency import choose_residents, share_memory
from distllm.engine.pool_size import PoolNeed


def open_lane(config: EngineConfig, device: torch.device) -> Lane | None:
    """What `config.offload` names, for layers that compute on `device`; None for "none". Raises OffloadError."""
    if config.offload == "none":
        return None
    if config.offload == "cpu" and device.type == "cpu":
        raise OffloadError(
            "--offload cpu frees a GPU's memory, and the model computes on the CPU: use --offload disk"
        )
    file = DiskFile(Path(config.offload_dir or DEFAULT_DIRECTORY))
    return DiskLane(file, PlainReader(file))


@dataclass(frozen=True, slots=True)
class Settled:
    """What follows from the division: `config` with the KV pool's share, and the bytes that a step brings in."""

    config: EngineConfig
    streamed_bytes: int


def settle_layers(
    offloader: Offloader,
    config: EngineConfig,
    need: PoolNeed,
    other_bytes: int,
    free_bytes: int,
    on_progress: Callable[[float], None],
) -> Settled:
    """Decide which layers stay in memory and let the rest stream.

    `other_bytes` are the weights that are never offloaded; `free_bytes` is measured with them in memory and the
    layers out of it. Raises OutOfMemory.
    """
    shares = share_memory(need, free_bytes, _given_pool_bytes(config, need))
    budget = shares.layer_bytes if config.weights_bytes is None else config.weights_bytes - other_bytes
    residency = choose_residents(offloader.layer_bytes, budget)
    offloader.settle(residency, on_progress)
    if config.num_blocks is None and config.weights_bytes is None and residency.streamed:
        config = replace(config, kv_cache_bytes=shares.kv_bytes)
    return Settled(config, residency.streamed_bytes)


def _given_pool_bytes(config: EngineConfig, need: PoolNeed) -> int | None:
    return config.kv_cache_bytes if config.num_blocks is None else config.num_blocks * need.block_bytes
