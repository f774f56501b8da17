"""What the front end costs: 200 requests a second with a 1-token answer, and the processor time of each process.

`python -m benchmarks.frontend_overhead` starts `distllm serve` with its embedded model. The front end is the
process that was started; the engine is its child.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.arrivals import arrival_times_s
from benchmarks.dialects import DIALECTS
from benchmarks.load import LoadResult, Target, run_load
from benchmarks.metrics import Goals, summarize
from benchmarks.prompts import Workload, make_prompts
from benchmarks.report import format_summary
from benchmarks.servers import OURS, RunningServer, running
from distllm.clients import Client


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of one core over a run: 1.0 is a core kept busy throughout."""

    front_end: float
    engine: float
    client: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with running(OURS, options.model, options.results / "frontend_overhead.log") as server:
        result, shares = _measure(server, options)
    summary = summarize(result, Goals())
    print(format_summary(summary, rate=options.request_rate))
    print(f"front end: {shares.front_end:.1%} of one core")
    print(f"engine:    {shares.engine:.1%}")
    print(f"client:    {shares.client:.1%}")
    file = options.results / "frontend_overhead.json"
    file.write_text(json.dumps({"shares": asdict(shares), "summary": asdict(summary)}, indent=1), encoding="utf-8")
    return 0 if summary.num_failed == 0 else 1


def _measure(server: RunningServer, options: argparse.Namespace) -> tuple[LoadResult, Shares]:
    num_requests = round(options.request_rate * options.seconds)
    workload = Workload(num_prompts=num_requests, input_len=options.input_len, output_len=1)
    prompts = make_prompts(workload, range(256), np.random.default_rng(options.seed))
    arrivals_s = arrival_times_s(num_requests, options.request_rate, 1.0, np.random.default_rng(options.seed))
    with Client(server.base_url) as client:
        target = Target(base_url=server.base_url, model=client.model(), dialect=DIALECTS["vllm"], timeout_s=60)
    asyncio.run(run_load(target, prompts[:20], [0.0] * 20))
    before = processor_seconds(server.tree())
    result = asyncio.run(run_load(target, prompts, arrivals_s))
    after = processor_seconds(server.tree())
    return result, shares_of(server.process.pid, before, after, result)


def processor_seconds(processes: Sequence[psutil.Process]) -> dict[int, float]:
    """User and system time that each process has used so far, by its id."""
    seconds = {}
    for process in processes:
        times = process.cpu_times()
        seconds[process.pid] = times.user + times.system
    return seconds


def shares_of(front_end: int, before: dict[int, float], after: dict[int, float], result: LoadResult) -> Shares:
    """`front_end` is the process id of the front end; every other process counts as the engine."""
    spent = {pid: seconds - before.get(pid, 0.0) for pid, seconds in after.items()}
    engine = sum(seconds for pid, seconds in spent.items() if pid != front_end)
    return Shares(
        front_end=spent[front_end] / result.duration_s,
        engine=engine / result.duration_s,
        client=result.client_cpu_s / result.duration_s,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontend_overhead", description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint; none: the embedded model")
    parser.add_argument("--request-rate", type=float, default=200.0, help="a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the run (default: %(default)s)")
    parser.add_argument("--input-len", type=int, default=16, help="tokens a prompt (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
