"""Resolves which device serves and what it has free."""

import torch

from distllm.engine.config import DeviceName
from distllm.engine.memory import measure_free_host_bytes


def resolve_device(name: DeviceName) -> torch.device:
    """The first CUDA device where there is one, else the CPU. Raises ValueError for a CUDA that is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device; use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def measure_free_bytes(device: torch.device) -> int:
    """Memory of the device that could be taken now, counting what torch holds without using it."""
    if device.type != "cuda":
        return measure_free_host_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
