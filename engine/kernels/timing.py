"""Which way of multiplying bf16 is faster on this CPU: measured, never looked up."""

from functools import cache
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from distllm.engine.kernels.packed import Bf16Variant, PackedLinear

_SHAPE = (1024, 1024)
_ROUNDS = 5


class LinearKernels(Protocol):
    isa: str

    def pack_linear(self, weight: Tensor, variant: Bf16Variant) -> PackedLinear: ...

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor: ...


def faster_variant(kernels: LinearKernels) -> Bf16Variant:
    """The variant with the smaller sum of best times for 1 and 16 rows. Measured once a process and level."""
    known = _measured()
    if kernels.isa not in known:
        known[kernels.isa] = _measure(kernels)
    return known[kernels.isa]


@cache
def _measured() -> dict[str, Bf16Variant]:
    return {}


def _measure(kernels: LinearKernels) -> Bf16Variant:
    weight = torch.full(_SHAPE, 0.01, dtype=torch.bfloat16)
    variants: tuple[Bf16Variant, ...] = ("fma", "dot")
    packed = {variant: kernels.pack_linear(weight, variant) for variant in variants}
    best = {(variant, rows): float("inf") for variant in variants for rows in (1, 16)}
    for _ in range(_ROUNDS):
        for variant, rows in best:
            x = torch.ones(rows, _SHAPE[1], dtype=torch.bfloat16)
            begin = perf_counter()
            kernels.linear(x, packed[variant])
            best[variant, rows] = min(best[variant, rows], perf_counter() - begin)
    return min(variants, key=lambda variant: best[variant, 1] + best[variant, 16])
