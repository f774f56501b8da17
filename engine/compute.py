"""Chooses what runs attention and linear layers: compiled CPU kernels where they serve, plain torch elsewhere."""

import logging
from dataclasses import dataclass

import torch

from distllm.engine.attention.interface import AttentionBackend
from distllm.engine.attention.paged_cpu import PagedCpuAttention
from distllm.engine.attention.reference import ReferenceAttention
from distllm.engine.config import EngineConfig
from distllm.engine.kernels.library import KernelsUnavailable
from distllm.engine.kernels.ops import CpuKernels, load_kernels

logger = logging.getLogger("distllm.engine")

_KERNEL_DTYPES = frozenset({torch.float32, torch.bfloat16})


@dataclass(frozen=True, slots=True)
class Compute:
    """The attention backend, and the kernels of linear layers; None leaves these to torch."""

    attention: AttentionBackend
    kernels: CpuKernels | None

    @property
    def name(self) -> str:
        return self.attention.name if self.kernels is None else f"{self.attention.name} ({self.kernels.isa})"

    @property
    def numerics(self) -> str:
        """Equal for two engines whose bits are equal; plain torch promises nothing beyond its version."""
        return f"torch-{torch.__version__}" if self.kernels is None else self.kernels.numerics


def choose_compute(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Compute:
    """Raises ValueError when the kernels were asked for and cannot serve."""
    reason = _why_no_kernels(config, device, dtype)
    if reason is None:
        kernels = load_kernels(num_threads=config.num_threads)
        if isinstance(kernels, CpuKernels):
            return Compute(PagedCpuAttention(kernels), kernels)
        reason = _reason(kernels)
    if config.attention_backend == "paged_cpu":
        raise ValueError(f"--attention-backend paged_cpu: {reason}")
    if config.attention_backend == "auto":
        logger.warning("serving with plain torch, which is slow: %s", reason)
    return Compute(ReferenceAttention(device), None)


def _why_no_kernels(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    if config.attention_backend == "reference":
        return "plain torch was asked for"
    if device.type != "cpu":
        return f"there are no kernels for {device.type}"
    if dtype not in _KERNEL_DTYPES:
        return f"the CPU kernels take float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return None


def _reason(unavailable: KernelsUnavailable) -> str:
    return unavailable.reason
