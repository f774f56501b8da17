"""One rank with two threads against two ranks with one thread each, on this machine's CPU.

`python -m benchmarks.tensor_parallel` makes random bf16 checkpoints in the shapes of SmolLM2-135M and Llama 3.2 1B
(1.2 billion parameters), and decodes 1 and 16 streams with either, turn about. It prints medians over the rounds,
their ratios, and draws where the time of a step goes.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.checkpoint import SMOLLM2_135M, make_checkpoint
from benchmarks.parallel_engine import NUM_WARM_UP_STEPS, Job, Timing
from benchmarks.start import LLAMA_1_2B

SHAPES: Mapping[str, dict[str, Any]] = {"135m": SMOLLM2_135M, "1.2b": LLAMA_1_2B}
STREAMS = (1, 16)
_NUMBERS = ("tokens_per_second", "step_ms", "schedule_ms", "reduce_ms", "wait_ms")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians of both ways to use two cores, for one shape and number of streams."""

    shape: str
    num_streams: int
    one_rank: Timing
    two_ranks: Timing

    @property
    def ratio(self) -> float:
        """Tokens a second of two ranks over those of one."""
        return self.two_ranks.tokens_per_second / self.one_rank.tokens_per_second


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.num_tokens <= NUM_WARM_UP_STEPS + 1:
        parser.error(f"--num-tokens must be above {NUM_WARM_UP_STEPS + 1}: the first steps are a warm-up")
    comparisons = []
    for shape in options.shapes:
        model = make_checkpoint(options.results / f"checkpoints/{shape}", SHAPES[shape])
        for num_streams in STREAMS:
            comparisons.append(_compare(options, shape, str(model), num_streams))
            print("\n".join(lines(comparisons[-1])), flush=True)
    file = options.results / "tensor_parallel.json"
    file.write_text(json.dumps([asdict(comparison) for comparison in comparisons], indent=1), encoding="utf-8")
    draw(comparisons, options.results / "tensor_parallel.png")
    print(f"written: {file} and {file.with_suffix('.png')}")
    return 0


def lines(comparison: Comparison) -> list[str]:
    """A table of three lines."""
    title = f"{comparison.shape}, {comparison.num_streams} streams: two ranks at {comparison.ratio:.2f} of one"
    return [title] + [
        f"  {name:22} {timing.tokens_per_second:8.1f} tokens/s   step {timing.step_ms:7.2f} ms   "
        f"sums {timing.reduce_ms:6.2f} ms ({timing.wait_ms:.2f} waiting)   "
        f"scheduling {timing.schedule_ms:5.2f} ms   "
        f"rest {timing.step_ms - timing.reduce_ms - timing.schedule_ms:7.2f} ms"
        for name, timing in (
            ("1 rank of 2 threads", comparison.one_rank),
            ("2 ranks of 1 thread", comparison.two_ranks),
        )
    ]


def _compare(options: argparse.Namespace, shape: str, model: str, num_streams: int) -> Comparison:
    one = Job(model=model, num_ranks=1, num_threads=2, num_streams=num_streams, num_tokens=options.num_tokens)
    two = replace(one, num_ranks=2, num_threads=1)
    timings: dict[int, list[Timing]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for job in (one, two):
            timings[job.num_ranks].append(_run(job))
    return Comparison(shape, num_streams, _medians(timings[1]), _medians(timings[2]))


def _run(job: Job) -> Timing:
    command = [sys.executable, "-m", "benchmarks.parallel_engine"]
    done = subprocess.run(command, input=json.dumps(asdict(job)), stdout=subprocess.PIPE, text=True, check=True)
    return Timing(**json.loads(done.stdout))


def _medians(timings: Sequence[Timing]) -> Timing:
    assert {field.name for field in fields(Timing)} == {*_NUMBERS, "numerics"}
    numbers = {name: statistics.median(getattr(timing, name) for timing in timings) for name in _NUMBERS}
    return Timing(**numbers, numerics=timings[0].numerics)


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Bars of a step's milliseconds, a pair for each comparison: compute, sums and scheduling one on the other."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(comparisons), figsize=(3.2 * len(comparisons), 4), layout="constrained")
    for axis, comparison in zip(axes if len(comparisons) > 1 else [axes], comparisons, strict=True):
        bottom = [0.0, 0.0]
        pair = (comparison.one_rank, comparison.two_ranks)
        for label, heights in (
            ("layers and sampling", [each.step_ms - each.reduce_ms - each.schedule_ms for each in pair]),
            ("waiting for the other rank", [each.wait_ms for each in pair]),
            ("sums over ranks", [each.reduce_ms - each.wait_ms for each in pair]),
            ("scheduling", [each.schedule_ms for each in pair]),
        ):
            axis.bar(["1 rank\n2 threads", "2 ranks\n1 thread each"], heights, bottom=bottom, label=label)
            bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
        axis.set_title(f"{comparison.shape}, {comparison.num_streams} streams: {comparison.ratio:.2f}", fontsize=10)
        axis.set_ylabel("milliseconds a step")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensor_parallel", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--num-tokens", type=int, default=64, help="tokens a stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="engines of each kind (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
