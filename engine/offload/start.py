"""Opens what layers are kept in, and divides the memory between resident layers, the ring and the KV pool."""

from dataclasses import dataclass
from pathlib import Path

import torch

from distllm.engine.config import EngineConfig
from distllm.engine.device import measure_free_bytes
from distllm.engine.offload.cuda_lane import CudaLane, make_event, pin
from distllm.engine.offload.disk_file import DEFAULT_DIRECTORY, DiskFile
from distllm.engine.offload.errors import check_offload
from distllm.engine.offload.lanes import DiskLane, Lane
from distllm.engine.offload.offloader import Offloader
from distllm.engine.offload.residency import divide_memory
from distllm.engine.offload.sources import HostMemory, StagedDisk
from distllm.engine.pool_size import PoolNeed


def open_lane(config: EngineConfig, device: torch.device, *, is_stored_quantized: bool) -> Lane | None:
    """What `config.offload` names, for layers that compute on `device`; None for "none". Raises OffloadError."""
    if config.offload == "none":
        return None
    check_offload(config, device.type, is_stored_quantized=is_stored_quantized)
    if config.offload == "cpu":
        return CudaLane(HostMemory(pin), device)
    file = DiskFile(Path(config.offload_dir or DEFAULT_DIRECTORY))
    if device.type == "cpu":
        return DiskLane(file)
    return CudaLane(StagedDisk(file, pin, make_event), device)


@dataclass(frozen=True, slots=True)
class Settled:
    """Bytes that a step brings in, and what the KV pool gets; None where all layers stay."""

    streamed_bytes: int
    kv_bytes: int | None


def settle_layers(
    offloader: Offloader, config: EngineConfig, need: PoolNeed, weight_bytes: int, device: torch.device
) -> Settled:
    """Decide which layers stay in memory, now that all are out of it, and let the rest stream. Raises OutOfMemory.

    `weight_bytes` are those of all weights.
    """
    other_bytes = weight_bytes - sum(offloader.layer_bytes)
    division = divide_memory(config, need, offloader.layer_bytes, other_bytes, measure_free_bytes(device))
    offloader.settle(division.residency)
    streamed_bytes = division.residency.streamed_bytes
    return Settled(streamed_bytes, division.kv_bytes if streamed_bytes else None)
