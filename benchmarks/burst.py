"""How far predictions are off for requests that arrive all at once at a server that has only measured itself.

`python -m benchmarks.burst` starts `distllm serve --mode hybrid` anew for every burst, so that nothing is known of
load yet, and reads from its metrics what was predicted of the requests and what happened. Without `--peers` all
runs on this machine; with two, requests spill over.
"""

import argparse
import asyncio
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.cluster import ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import Ask, run_streams

_FIGURE = re.compile(r'distllm_route_(predicted|actual)_(ttft|tpot)_seconds_(sum|count)\{route="(\w+)"\} (\S+)')
_LARGEST_TOKEN = 250  # of the embedded model, and of any other


@dataclass(frozen=True, slots=True)
class Outcome:
    """Mean seconds over the requests of one route, which are `num_requests`."""

    route: str
    what: str
    num_requests: int
    predicted_s: float
    actual_s: float

    @property
    def ratio(self) -> float:
        return self.predicted_s / self.actual_s

    def line(self) -> str:
        numbers = f"predicted {self.predicted_s * 1000:8.1f} ms   actual {self.actual_s * 1000:8.1f} ms"
        return f"  {self.route:9}{self.num_requests:4}   {self.what.upper()}   {numbers}   ratio {self.ratio:5.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    for num_requests in options.bursts:
        with tempfile.TemporaryDirectory() as directory:
            outcomes = _run(Path(directory), num_requests, options)
        print(f"burst of {num_requests}, {options.prompt_tokens} tokens in, {options.max_tokens} out", flush=True)
        for outcome in outcomes:
            print(outcome.line(), flush=True)
    return 0


def _run(directory: Path, num_requests: int, options: argparse.Namespace) -> list[Outcome]:
    hybrid = ("--mode", "hybrid", "--max-num-seqs", str(options.max_num_seqs), *ONE_NUMERICS)
    with running_cluster(
        directory, num_stages=max(1, options.peers), model=options.model, arguments=hybrid
    ) as cluster:
        cluster.wait_until_ready()
        for number in range(options.peers):
            cluster.start_peer(f"peer{number}")
        if options.peers:
            cluster.wait_until_serving(options.peers)
        _wait_until_measured(cluster, 2 if options.peers else 1)
        asks = [
            Ask(prompt=prompt, num_tokens=options.max_tokens, has_logprobs=False)
            for prompt in _prompts(num_requests, options)
        ]
        streams = asyncio.run(run_streams(cluster.base_url, asks, _model_name(cluster)))
        if errors := [stream.error for stream in streams if stream.error is not None]:
            raise SystemExit(f"{len(errors)} requests failed: {errors[0]}")
        return list(outcomes_of(httpx.get(f"{cluster.base_url}/metrics").text))


def _prompts(num_requests: int, options: argparse.Namespace) -> Iterator[list[int]]:
    """Of random tokens, so that none has its prefix cached."""
    draw = random.Random(num_requests)
    for _ in range(num_requests):
        yield [draw.randrange(1, _LARGEST_TOKEN) for _ in range(options.prompt_tokens)]


def _model_name(cluster: Cluster) -> str:
    return str(httpx.get(f"{cluster.base_url}/v1/models").json()["data"][0]["id"])


def _wait_until_measured(cluster: Cluster, num_routes: int) -> None:
    """The dry run waits for the first measurement of every route that can be taken."""
    body = {"model": _model_name(cluster), "prompt": "Once", "max_tokens": 1}

    def are_measured() -> bool:
        routes = httpx.post(f"{cluster.base_url}/v1/route/explain", json=body, timeout=60).json()["routes"]
        return bool(sum(route["is_measured"] and route["num_live"] == 0 for route in routes) >= num_routes)

    cluster.wait_until(are_measured, f"{num_routes} routes are measured")


def outcomes_of(metrics: str) -> Iterator[Outcome]:
    """What the metrics of a server say of all requests of which something was predicted."""
    figures = {(route, what, which, of): float(value) for which, what, of, route, value in _FIGURE.findall(metrics)}
    for route, what in sorted({(route, what) for route, what, _, _ in figures}):
        num_requests = figures[route, what, "predicted", "count"]
        sums = [figures[route, what, which, "sum"] for which in ("predicted", "actual")]
        yield Outcome(route, what, int(num_requests), sums[0] / num_requests, sums[1] / num_requests)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.burst", description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint; none: the embedded model")
    parser.add_argument("--bursts", type=int, nargs="+", default=[8, 32], help="requests (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=96, help="of each (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=48, help="of each answer (default: %(default)s)")
    parser.add_argument("--max-num-seqs", type=int, default=16, help="that run at once (default: %(default)s)")
    parser.add_argument("--peers", type=int, default=0, choices=(0, 1, 2), help="stages beside this machine")
    return parser


if __name__ == "__main__":
    sys.exit(main())
