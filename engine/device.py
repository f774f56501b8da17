"""Resolves which device serves and what it has free."""

import torch

from distllm.engine.config import DeviceName
from distllm.engine.memory import measure_free_host_bytes


def resolve_device(name: DeviceName, local_rank: int = 0) -> torch.device:
    """The CUDA device of this rank of a host where there are any, else the CPU.

    Raises ValueError for one that is missing.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device; use --device cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"--tensor-parallel-size: rank {local_rank} has no device of its own, there are "
            f"{torch.cuda.device_count()}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def num_cuda_devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def measure_free_bytes_of_ranks(device: torch.device, num_ranks: int) -> int:
    """Of the devices of as many ranks of a host, the first of which is `device`; CPU ranks share one memory."""
    if device.type != "cuda":
        return measure_free_bytes(device)
    return sum(measure_free_bytes(torch.device("cuda", rank)) for rank in range(num_ranks))


def measure_free_bytes(device: torch.device) -> int:
    """Memory of the device that could be taken now, counting what torch holds without using it."""
    if device.type != "cuda":
        return measure_free_host_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
