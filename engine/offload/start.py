"""Opens what layers are kept in, and divides the memory between resident layers, the ring and the KV pool."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distllm.engine.config import EngineConfig
from distllm.engine.device import measure_free_bytes
from distllm.engine.distributed.group import RankGroup
from distllm.engine.offload.cuda_lane import CudaLane, make_event, pin
from distllm.engine.offload.disk_file import DEFAULT_DIRECTORY, DiskFile
from distllm.engine.offload.errors import check_offload
from distllm.engine.offload.lanes import DiskLane, Lane
from distllm.engine.offload.offloader import Offloader
from distllm.engine.offload.residency import divide_memory
from distllm.engine.offload.sources import HostMemory, StagedDisk
from distllm.engine.pool_size import PoolNeed


def open_lane(config: EngineConfig, device: torch.device) -> Lane | None:
    """What `config.offload` names, for layers that compute on `device`; None for "none". Raises OffloadError."""
    if config.offload == "none":
        return None
    check_offload(config, device.type)
    if config.offload == "cpu":
        return CudaLane(HostMemory(pin), device)
    file = DiskFile(Path(config.offload_dir or DEFAULT_DIRECTORY))
    if device.type == "cpu":
        return DiskLane(file)
    return CudaLane(StagedDisk(file, pin, make_event), device)


@dataclass(frozen=True, slots=True)
class Settled:
    """Bytes that a step brings to all ranks, and the blocks that their pool gets; None where all layers stay."""

    streamed_bytes: int
    num_blocks: int | None


def settle_layers(
    offloader: Offloader,
    config: EngineConfig,
    need: PoolNeed,
    weight_bytes: int,
    device: torch.device,
    group: RankGroup | None,
) -> Settled:
    """Decide which layers stay in memory, now that all are out of it, and let the rest stream. Raises OutOfMemory.

    `weight_bytes` are those of all weights of this rank. Each rank decides for itself, with its share of the host's
    memory, or its own GPU's; sizes that `config` gives are those of all ranks together.
    """
    other_bytes = weight_bytes - sum(offloader.layer_bytes)
    share, free_bytes = _share(config, need, device, group)
    division = divide_memory(share, need, offloader.layer_bytes, other_bytes, free_bytes)
    if group is None:
        offloader.settle(division.residency)
        streamed_bytes, num_blocks = division.residency.streamed_bytes, division.kv_bytes // need.block_bytes
    else:
        offloader.settle(division.residency, group.pulse)
        own = [division.residency.streamed_bytes, division.kv_bytes // need.block_bytes]
        figures = group.gather_numbers(own)
        streamed_bytes, num_blocks = sum(figure[0] for figure in figures), min(figure[1] for figure in figures)
    return Settled(streamed_bytes, num_blocks if streamed_bytes else None)


def _share(
    config: EngineConfig, need: PoolNeed, device: torch.device, group: RankGroup | None
) -> tuple[EngineConfig, int]:
    """What of the sizes in `config` is this rank's, and the bytes that it has free."""
    free_bytes = measure_free_bytes(device)
    if group is None:
        return config, free_bytes
    own = [free_bytes, need.block_bytes, group.host]
    figures = group.gather_numbers(own)  # no rank has brought a layer back yet
    if device.type == "cpu":
        sharers = [figure[0] for figure in figures if figure[2] == group.host]
        free_bytes = min(sharers) // len(sharers)
    kv, weights = config.kv_cache_bytes, config.weights_bytes
    share = replace(
        config,
        kv_cache_bytes=None if kv is None else kv * need.block_bytes // sum(figure[1] for figure in figures),
        weights_bytes=None if weights is None else weights // group.size,
    )
    return share, free_bytes
