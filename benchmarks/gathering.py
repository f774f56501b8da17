"""What handing over candidates saves against whole rows: bytes and time a step, for two ranks that share a frame.

    python -m benchmarks.gathering [--rows 16] [--repeats 200]

Times are from the logits of both parts to the tokens, without the model: `second rank` writes its part into the
frame, `first rank` reduces its own, merges and samples. Both ways run turn about in one thread; medians.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from distllm.engine.batch import StepTensors, build_step_tensors
from distllm.engine.distributed.shared_bytes import create_descriptor
from distllm.engine.distributed.step_frame import FrameSize, StepFrame
from distllm.engine.interface import BlockId, SampleSpec, SequenceChunk, SequenceId
from distllm.engine.sampling.candidates import num_candidates
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.sampling.sampler import SampledToken, Sampler
from distllm.engine.sampling_params import SamplingParams

KINDS = {"greedy": SamplingParams(temperature=0.0), "top_k 50": SamplingParams(top_k=50, top_p=0.9)}
VOCAB_SIZES = (49_152, 128_256, 151_936)


class _Exchange:
    """One way to gather the logits of both ranks for one batch."""

    def __init__(self, frame: StepFrame, specs: Sequence[SampleSpec], counts: Sequence[int]) -> None:
        chunks = [SequenceChunk(SequenceId(row), [1], 0, [BlockId(row)], spec) for row, spec in enumerate(specs)]
        frame.write(build_step_tensors(chunks, range(len(specs)), (), counts))
        self._batch: StepTensors = build_step_tensors(chunks, range(len(specs)), (), counts)
        self._frame, self._specs, self._sampler = frame, specs, Sampler()

    def write(self, logits: Tensor) -> None:
        self._frame.write_logits(1, NeededLogits.of(logits, self._batch.num_candidates))

    def sample(self, logits: Tensor) -> list[SampledToken]:
        own = NeededLogits.of(logits, self._batch.num_candidates)
        both = NeededLogits.merge([own, self._frame.read_logits(1, self._batch)], self._batch.num_candidates)
        if both.best is None:
            return self._sampler.sample(both.whole, self._specs)
        return self._sampler.sample_candidates(both.best, self._specs)

    def num_bytes(self) -> int:
        """What the second rank hands over."""
        part = self._frame.read_logits(1, self._batch)
        best = () if part.best is None else (part.best.values, part.best.ids)
        return sum(values.numel() * values.itemsize for values in (part.whole, *best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.rows} rows, two ranks        bytes a step     second rank, us      first rank, us")
    for vocab_size in VOCAB_SIZES:
        for kind, params in KINDS.items():
            whole, best = _compare(vocab_size, params, options.rows, options.repeats)
            print(f"{vocab_size:>7} {kind:9} whole rows" + "".join(f"{figure:20,.0f}" for figure in whole))
            print(f"{'':17} candidates" + "".join(f"{figure:20,.0f}" for figure in best))


def _compare(vocab_size: int, params: SamplingParams, num_rows: int, repeats: int) -> list[tuple[float, ...]]:
    """Bytes, and microseconds of either rank: with whole rows, with candidates."""
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 4.0
    own, other = (part.contiguous() for part in torch.tensor_split(logits, 2, dim=-1))
    specs = [SampleSpec(params, seed, 0) for seed in range(num_rows)]
    descriptor = create_descriptor()
    frame = StepFrame(descriptor, FrameSize(num_rows, num_rows, 1, (own.shape[1], other.shape[1])))
    counts = [num_candidates(spec) or 0 for spec in specs]
    ways = [_Exchange(frame, specs, ()), _Exchange(frame, specs, counts)]
    times: list[list[tuple[float, float]]] = [[], []]
    for _ in range(repeats):
        for way, taken in zip(ways, times, strict=True):
            start_s = time.perf_counter()
            way.write(other)
            written_s = time.perf_counter()
            way.sample(own)
            taken.append((written_s - start_s, time.perf_counter() - written_s))
    os.close(descriptor)
    return [
        (way.num_bytes(), *(statistics.median(column) * 1e6 for column in zip(*taken, strict=True)))
        for way, taken in zip(ways, times, strict=True)
    ]


if __name__ == "__main__":
    main()
