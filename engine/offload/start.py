"""Opens what layers are kept in, and divides the memory between resident layers, the ring and the KV pool."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distllm.engine.config import EngineConfig
from distllm.engine.offload.cuda_lane import CudaLane, make_event, pin
from distllm.engine.offload.disk_file import DEFAULT_DIRECTORY, DiskFile
from distllm.engine.offload.errors import check_device
from distllm.engine.offload.lanes import DiskLane, Lane
from distllm.engine.offload.offloader import Offloader
from distllm.engine.offload.residency import divide_memory
from distllm.engine.offload.sources import HostMemory, StagedDisk
from distllm.engine.pool_size import PoolNeed


def open_lane(config: EngineConfig, device: torch.device) -> Lane | None:
    """What `config.offload` names, for layers that compute on `device`; None for "none". Raises OffloadError."""
    if config.offload == "none":
        return None
    check_device(config.offload, device.type)
    if config.offload == "cpu":
        return CudaLane(HostMemory(pin), device)
    file = DiskFile(Path(config.offload_dir or DEFAULT_DIRECTORY))
    if device.type == "cpu":
        return DiskLane(file)
    return CudaLane(StagedDisk(file, pin, make_event), device)


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
    division = divide_memory(config, need, offloader.layer_bytes, other_bytes, free_bytes)
    offloader.settle(division.residency, on_progress)
    if config.num_blocks is None and division.residency.streamed:
        config = replace(config, kv_cache_bytes=division.kv_bytes)
    return Settled(config, division.residency.streamed_bytes)
