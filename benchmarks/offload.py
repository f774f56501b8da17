"""Serving a model from a disk: tokens a second in less memory than its weights take.

`python -m benchmarks.offload` makes a random bf16 checkpoint in the shape of Llama 3.2 1B (1.2 billion parameters)
and runs the engine on it with `--offload disk`, in a cgroup that may use 60 % of the weights' size. The bytes that
its layers stream a second are compared with the faster of the disk's sequential rates just before and after.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.checkpoint import make_checkpoint
from benchmarks.memory_limit import MemoryLimit, memory_limit
from benchmarks.offloaded_engine import Run
from benchmarks.start import LLAMA_1_2B
from distllm.engine.offload.disk_rate import measure_disk_rate

_DISK_SAMPLE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine's runs, beside the disk."""

    runs: list[Run]
    disk_bytes_per_s: float
    peak_bytes: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    model = options.model or str(make_checkpoint(options.results / "checkpoints/llama-1.2b", LLAMA_1_2B))
    limit_bytes = int(options.share * sum(file.stat().st_size for file in Path(model).glob("*.safetensors")))
    print(f"memory limit: {limit_bytes / 1e9:.2f} GB, {options.share:.0%} of the weights")
    measured = []
    for _ in range(options.rounds):
        with memory_limit(limit_bytes) as limit:
            measured.append(_measure(model, options, limit))
        _print(measured[-1])
    for streams in options.streams:
        share = _median_share(measured, streams)
        print(f"median of {options.rounds}, {streams} streams: {share:.0%} of the disk's rate")
    (options.results / "offload.json").write_text(json.dumps([asdict(one) for one in measured], indent=1))
    return 0


def _measure(model: str, options: argparse.Namespace, limit: MemoryLimit) -> Measured:
    command = [sys.executable, "-m", "benchmarks.offloaded_engine", model]
    command += ["--offload-dir", str(options.offload_dir), "--num-tokens", str(options.num_tokens)]
    command += ["--streams", *map(str, options.streams)]
    before = measure_disk_rate(options.offload_dir, _DISK_SAMPLE_BYTES)
    done = subprocess.run(limit.wrap(command), stdout=subprocess.PIPE, text=True, check=True)
    after = measure_disk_rate(options.offload_dir, _DISK_SAMPLE_BYTES)
    runs = [Run(**run) for run in json.loads(done.stdout.splitlines()[-1])]
    return Measured(runs, max(before, after), limit.peak_bytes())


def _print(measured: Measured) -> None:
    disk = measured.disk_bytes_per_s
    for run in measured.runs:
        streamed = run.streamed_bytes_per_s
        print(
            f"{run.num_streams:3d} streams: {run.tokens_per_s:6.2f} tokens/s, {streamed / 1e9:.2f} GB/s of layers, "
            f"disk {disk / 1e9:.2f} GB/s: {streamed / disk:.0%}",
            flush=True,
        )
    if measured.peak_bytes is not None:
        print(f"    peak memory, page cache included: {measured.peak_bytes / 1e9:.2f} GB", flush=True)


def _median_share(measured: Sequence[Measured], num_streams: int) -> float:
    return statistics.median(
        run.streamed_bytes_per_s / one.disk_bytes_per_s
        for one in measured
        for run in one.runs
        if run.num_streams == num_streams
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offload", description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint; none: a random one, made once")
    parser.add_argument("--share", type=float, default=0.6, help="memory limit, as a part of the weights")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16], help="sequences that run at once")
    parser.add_argument("--num-tokens", type=int, default=24, help="of each stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="engines started (default: %(default)s)")
    parser.add_argument("--offload-dir", type=Path, default=Path("/var/tmp"), help="folder on the disk to measure")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
