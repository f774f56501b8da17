"""Times the CPU kernels beside torch's own: python -m benchmarks.kernels [--features N --depth K --threads T].

Linear layers: GB/s of weights read and GFLOP/s, over enough copies of the weight that no cache holds them all.
Attention: microseconds a call of paged attention, and of torch's own over keys and values already gathered.
Figures are medians of rounds in which the candidates take turns, so that a busy machine disturbs all alike.
With --quantized: what quantized weights and caches take beside bf16 ones, on one thread (quantized_kernels.py).
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from time import perf_counter, sleep

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.quantized_kernels import time_quantized
from distllm.engine.attention.interface import AttentionBatch, AttentionCall
from distllm.engine.attention.paged_cpu import PagedCpuAttention
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.kernels.library import KernelsUnavailable
from distllm.engine.kernels.ops import CpuKernels, load_kernels
from distllm.engine.kernels.quantized import pack_quantized, quantized_linear
from distllm.engine.quantization.config import WeightScheme
from distllm.engine.quantization.quantizer import quantize

ROWS = (1, 4, 8, 16, 32, 64, 256)
CONTEXTS = (128, 1024)
STREAMS = (1, 16, 32)
SCHEMES = (
    WeightScheme(bits=8),
    WeightScheme(bits=8, dynamic_activations=True),
    WeightScheme(bits=4, group_size=32),
    WeightScheme(bits=4, group_size=128),
)


def main() -> None:
    arguments = parse_arguments()
    kernels = load_kernels(arguments.isa, 1 if arguments.quantized else arguments.threads)
    if isinstance(kernels, KernelsUnavailable):
        raise SystemExit(kernels.reason)
    if arguments.variant is not None:
        kernels.bf16_variant = arguments.variant
    torch.set_num_threads(kernels.num_threads)
    print(
        f"{kernels.isa}, {kernels.num_threads} threads, "
        f"bf16 by {kernels.bf16_variant}; medians of {arguments.rounds}"
    )
    with torch.inference_mode():
        if arguments.quantized:
            time_quantized(kernels, arguments.rounds)
        else:
            time_linear(kernels, arguments.features, arguments.depth, arguments.rounds)
            time_attention(kernels, arguments.rounds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the CPU kernels beside torch's own.")
    parser.add_argument("--isa", help="instruction level (default: the best this CPU runs)")
    parser.add_argument("--variant", choices=["fma", "dot"], help="of bf16 (default: the faster)")
    parser.add_argument("--quantized", action="store_true")
    parser.add_argument("--threads", type=int, help="default: one a core")
    parser.add_argument("--features", type=int, default=3072)
    parser.add_argument("--depth", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def medians(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds a call of each candidate, which take turns.

    Threads of the one before may spin for a while, and the candidate's own sleep: hence the pause and a first call.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, candidate in candidates.items():
            sleep(0.005)
            candidate()
            begin = perf_counter()
            candidate()
            times[name].append(perf_counter() - begin)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def time_linear(kernels: CpuKernels, features: int, depth: int, rounds: int) -> None:
    copies = max(2, 64 * 2**20 // (features * depth * 2))
    print(f"\nlinear [{features}, {depth}], {copies} copies: GFLOP/s (GB/s of weights)")
    weights = [torch.randn(features, depth) * 0.02 for _ in range(copies)]
    halves = [weight.bfloat16() for weight in weights]
    layers: dict[str, tuple[list[Callable[[Tensor], Tensor]], torch.dtype]] = {
        "float32": ([packed_layer(kernels, w) for w in weights], torch.float32),
        "bf16 fma": ([packed_layer(kernels, w, dot=False) for w in halves], torch.bfloat16),
        "torch float32": ([torch_layer(w) for w in weights], torch.float32),
        "torch bf16": ([torch_layer(w) for w in halves], torch.bfloat16),
    }
    for scheme in SCHEMES:
        layers[scheme.name] = [quantized_layer(kernels, w, scheme) for w in halves], torch.bfloat16
    if kernels.has_bf16_dot:
        layers["bf16 dot"] = ([packed_layer(kernels, w, dot=True) for w in halves], torch.bfloat16)
    print("rows  " + "".join(f"{name:>20}" for name in layers))
    for rows in ROWS:
        used = max(1, copies // (1 + rows // 16))
        runs = {
            name: all_layers(own[:used], torch.randn(rows, depth).to(dtype))
            for name, (own, dtype) in layers.items()
        }
        times = medians(runs, rounds)
        cells = []
        for name, (_, dtype) in layers.items():
            size = features * depth * used
            cells.append(
                f"{2 * rows * size / times[name] / 1e9:9.0f} ({size * dtype.itemsize / times[name] / 1e9:5.1f})"
            )
        print(f"{rows:4d}  " + "".join(f"{cell:>20}" for cell in cells))


def packed_layer(kernels: CpuKernels, weight: Tensor, dot: bool = False) -> Callable[[Tensor], Tensor]:
    packed = kernels.pack_linear(weight, "dot" if dot else "fma")
    return lambda x: kernels.linear(x, packed)


def quantized_layer(kernels: CpuKernels, weight: Tensor, scheme: WeightScheme) -> Callable[[Tensor], Tensor]:
    panels = pack_quantized(kernels, quantize(weight, scheme))
    return lambda x: quantized_linear(kernels, x, panels)


def torch_layer(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: functional.linear(x, weight)


def all_layers(layers: list[Callable[[Tensor], Tensor]], x: Tensor) -> Callable[[], None]:
    def run() -> None:
        for layer in layers:
            layer(x)

    return run


def time_attention(kernels: CpuKernels, rounds: int) -> None:
    print("\nattention, 9 heads on 3 kv heads of 64, bf16: microseconds (torch: cache gathered beforehand)")
    print("rows          context       paged       torch")
    cases = [(streams, 1, context) for context in CONTEXTS for streams in STREAMS]
    cases += [(1, 256, context) for context in (256, 1024)]
    for streams, rows, context in cases:
        times = medians(attention_candidates(kernels, streams, rows, context), rounds)
        print(
            f"{streams:3d} x {rows:<4d}  {context:9d}  {times['paged'] * 1e6:10.0f}  {times['torch'] * 1e6:10.0f}"
        )


def attention_candidates(
    kernels: CpuKernels, streams: int, rows: int, context: int
) -> dict[str, Callable[[], object]]:
    """`streams` sequences of `context` tokens, of which the last `rows` are computed now."""
    backend, blocks = PagedCpuAttention(kernels), context // BLOCK_SIZE
    layer_kv = backend.allocate(streams * blocks, 3, 64, 64, torch.bfloat16)
    tables = torch.randperm(streams * blocks).int().view(streams, blocks)
    keys, values = torch.randn(2, streams, 3, context, 64).bfloat16()
    everything = (tables.long()[:, :, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).view(-1)
    flat_keys, flat_values = (cache.transpose(1, 2).reshape(-1, 3, 64) for cache in (keys, values))
    computed = torch.full((streams,), context - rows).int()
    starts = (torch.arange(streams + 1) * rows).int()
    backend.write(layer_kv, flat_keys, flat_values, AttentionBatch(starts, computed, tables, everything))
    batch = AttentionBatch(starts, computed, tables, everything[: streams * rows])
    query = torch.randn(streams * rows, 9, 64).bfloat16()
    own = query.view(streams, rows, 9, 64).transpose(1, 2)
    mask = torch.ones(rows, context, dtype=torch.bool).tril(context - rows)
    return {
        "paged": lambda: backend.attend(query, layer_kv, batch, AttentionCall(0.125)),
        "torch": lambda: functional.scaled_dot_product_attention(own, keys, values, mask, enable_gqa=True),
    }


if __name__ == "__main__":
    main()
