"""Quantized kernels beside bf16 ones: products with INT8 and INT4 weights, attention over an INT8 and an FP8 cache.

Each figure is the median, over rounds in which two kernels take turns, of the one's time as a part of the other's.
One thread, whose own processor time is measured: a busy machine takes that thread's turns, not its time.
"""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from time import thread_time

import torch
from torch import Tensor

from distllm.engine.attention.interface import AttentionBatch, AttentionCall
from distllm.engine.attention.paged_cpu import PagedCpuAttention
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.kernels.ops import CpuKernels
from distllm.engine.kernels.quantized import pack_quantized, quantized_linear
from distllm.engine.quantization.config import WeightScheme
from distllm.engine.quantization.quantizer import quantize

ROWS = (1, 4, 16, 64)
SHAPE = (2048, 2048)
LAYERS_BYTES = 32 * 2**20
"""Layers of so many bytes in bf16 run in turn, so that none finds itself in the core's own cache."""
GROUPS = (None, 32, 64, 128)
SCHEMES = (
    *(WeightScheme(bits=8, group_size=group) for group in GROUPS),
    *(WeightScheme(bits=4, group_size=group) for group in GROUPS[1:]),
    WeightScheme(bits=4, group_size=32, symmetric=False),
    WeightScheme(bits=8, dynamic_activations=True),
)
CACHES = (torch.bfloat16, torch.int8, torch.float8_e4m3fn)
HEADS = ((32, 8), (8, 8))
BATCHES = ((1, 1, 512), (1, 1, 4096), (16, 1, 512), (16, 1, 4096), (1, 256, 512))
"""Sequences, tokens that each computes, and the length of each."""


def time_quantized(kernels: CpuKernels, rounds: int) -> None:
    assert kernels.num_threads == 1, "times are those of one thread"
    time_products(kernels, rounds)
    time_caches(kernels, rounds)


def parts_of_first(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Of each candidate: the median of its time over that of the first, with which alone it takes turns.

    So what both read was last read equally long ago.
    """
    first, *others = candidates
    parts: dict[str, float] = {}
    for name in others:
        pairs = [(seconds(candidates[first]), seconds(candidates[name])) for _ in range(rounds + 1)]
        parts[name] = statistics.median(own / whole for whole, own in pairs[1:])
    return parts


def seconds(candidate: Callable[[], object]) -> float:
    begin = thread_time()
    candidate()
    return thread_time() - begin


def time_products(kernels: CpuKernels, rounds: int) -> None:
    print(
        f"\nproducts with weights [{SHAPE[0]}, {SHAPE[1]}] and bf16 inputs: time as a part of that of bf16 weights"
    )
    print("rows  " + "".join(f"{scheme.name:>10}" for scheme in SCHEMES))
    num_layers = -(-LAYERS_BYTES // (SHAPE[0] * SHAPE[1] * 2))
    weights = [(torch.randn(*SHAPE) * 0.02).bfloat16() for _ in range(num_layers)]
    dense = [kernels.pack_linear(weight) for weight in weights]
    layers = {
        scheme.name: [pack_quantized(kernels, quantize(weight, scheme)) for weight in weights] for scheme in SCHEMES
    }
    for rows in ROWS:
        x = torch.randn(rows, SHAPE[1]).bfloat16()
        candidates = {"bf16": in_turn([partial(kernels.linear, x, own) for own in dense])}
        for name, panels in layers.items():
            candidates[name] = in_turn([partial(quantized_linear, kernels, x, own) for own in panels])
        parts = parts_of_first(candidates, rounds)
        print(f"{rows:4d}  " + "".join(f"{part:10.2f}" for part in parts.values()))


def in_turn(layers: list[Callable[[], Tensor]]) -> Callable[[], object]:
    def run() -> None:
        for layer in layers:
            layer()

    return run


def time_caches(kernels: CpuKernels, rounds: int) -> None:
    print("\nattention of bf16 queries: time as a part of that over a bf16 cache")
    print("heads    dim  sequences x tokens  length      int8       fp8")
    for (heads, kv_heads), dim, batch in product(HEADS, (64, 128), BATCHES):
        num_sequences, num_tokens, length = batch
        num_layers = -(-LAYERS_BYTES // (num_sequences * length * kv_heads * dim * 4))
        candidates = {
            str(dtype): in_turn(
                [attention(kernels, batch, (heads, kv_heads, dim), dtype) for _ in range(num_layers)]
            )
            for dtype in CACHES
        }
        parts = parts_of_first(candidates, rounds)
        print(
            f"{heads:2d} on {kv_heads} {dim:4d}  {num_sequences:9d} x {num_tokens:<6d}  {length:6d}"
            + "".join(f"{part:10.2f}" for part in parts.values())
        )


def attention(
    kernels: CpuKernels, batch: tuple[int, int, int], shape: tuple[int, int, int], dtype: torch.dtype
) -> Callable[[], Tensor]:
    """Sequences in scattered blocks of a cache of `dtype`, of whose tokens the last are computed now."""
    (num_sequences, num_tokens, length), (heads, kv_heads, dim) = batch, shape
    backend, num_blocks = PagedCpuAttention(kernels), length // BLOCK_SIZE
    layer_kv = backend.allocate(num_sequences * num_blocks, kv_heads, dim, dim, dtype)
    tables = torch.randperm(num_sequences * num_blocks).int().view(num_sequences, num_blocks)
    slots = (tables.long()[:, :, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).view(-1)
    starts = (torch.arange(num_sequences + 1) * num_tokens).int()
    computed = torch.full((num_sequences,), length - num_tokens).int()
    keys, values = torch.randn(2, num_sequences * length, kv_heads, dim).bfloat16()
    backend.write(layer_kv, keys, values, AttentionBatch(starts, computed, tables, slots))
    query = torch.randn(num_sequences * num_tokens, heads, dim).bfloat16()
    now = AttentionBatch(starts, computed, tables, slots[: len(query)])
    return lambda: backend.attend(query, layer_kv, now, AttentionCall(dim**-0.5))
