"""Chooses what runs attention and linear layers: compiled CPU kernels where they serve, plain torch elsewhere."""

import logging
from dataclasses import dataclass

import torch

from distllm.engine.attention.interface import AttentionBackend
from distllm.engine.attention.paged_cpu import PagedCpuAttention
from distllm.engine.attention.reference import ReferenceAttention
from distllm.engine.config import EngineConfig
from distllm.engine.distributed.group import RankGroup
from distllm.engine.kernels.ops import CpuKernels, load_kernels
from distllm.engine.kernels.packed import Bf16Variant
from distllm.engine.numerics import kernels_of

logger = logging.getLogger("distllm.engine")

_BF16_VARIANTS: tuple[Bf16Variant, ...] = ("fma", "dot")
_KERNEL_DTYPES = frozenset({torch.float32, torch.bfloat16})


@dataclass(frozen=True, slots=True)
class Compute:
    """The attention backend, and the kernels of linear layers; None leaves these to torch.

    `family` says how weights are quantized, "" where they are not. `why_plain` is the reason against kernels.
    """

    attention: AttentionBackend
    kernels: CpuKernels | None
    family: str = ""
    why_plain: str | None = None

    @property
    def name(self) -> str:
        return self.attention.name if self.kernels is None else f"{self.attention.name} ({self.kernels.isa})"

    @property
    def numerics(self) -> str:
        """Equal for two engines whose bits are equal; plain torch promises nothing beyond its version."""
        return (f"torch-{torch.__version__}" if self.kernels is None else self.kernels.numerics) + self.family


def choose_compute(
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    family: str = "",
    group: RankGroup | None = None,
) -> Compute:
    """The same on every rank of `group`. Raises ValueError when the kernels were asked for and cannot serve."""
    reason = _why_no_kernels(config, device, dtype)
    if reason is None:
        kernels = load_kernels(num_threads=config.num_threads)
        if isinstance(kernels, CpuKernels):
            if config.numerics is not None:
                _pin_numerics(kernels, kernels_of(config.numerics))
            elif group is not None:
                _agree_on_variant(kernels, group)
            return Compute(PagedCpuAttention(kernels), kernels, family)
        reason = kernels.reason
    if config.attention_backend == "paged_cpu":
        raise ValueError(f"--attention-backend paged_cpu: {reason}")
    if config.attention_backend == "auto":
        logger.warning("serving with plain torch, which is slow: %s", reason)
    return Compute(ReferenceAttention(device), None, family, reason)


def _agree_on_variant(kernels: CpuKernels, group: RankGroup) -> None:
    """Take the bf16 variant that the first rank measured to be the faster."""
    measured = [_BF16_VARIANTS.index(kernels.bf16_variant)]
    ((first,), *_) = group.gather_numbers(measured)
    kernels.bf16_variant = _BF16_VARIANTS[first]


def _pin_numerics(kernels: CpuKernels, numerics: str) -> None:
    """Choose the bf16 variant under which the kernels have the given numerics."""
    if kernels.numerics == numerics:
        return
    measured = kernels.bf16_variant
    for variant in _BF16_VARIANTS:
        if variant == "fma" or kernels.has_bf16_dot:
            kernels.bf16_variant = variant
            if kernels.numerics == numerics:
                return
    kernels.bf16_variant = measured
    logger.warning("tokens may differ by rounding from those of the engine before, which computed as %s", numerics)


def _why_no_kernels(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    if config.attention_backend == "reference":
        return "plain torch was asked for"
    if device.type != "cpu":
        return f"there are no kernels for {device.type}"
    if dtype not in _KERNEL_DTYPES:
        return f"the CPU kernels take float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return None
