"""A run's figures as text in the layout of `vllm bench serve`, as JSON, and as a plot."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.load import LoadResult
from benchmarks.metrics import Distribution, Summary

_WIDTH = 50
_LABEL_WIDTH = 40


def format_summary(summary: Summary, percentiles: Sequence[float] = (90, 99), rate: float | None = None) -> str:
    """The table to print. `rate` is the configured one, if any."""
    lines = [f"{' Serving Benchmark Result ':=^{_WIDTH}}"]
    lines += [f"{label + ':':<{_LABEL_WIDTH}} {value}" for label, value in _totals(summary, rate)]
    for title, name, distribution in _distributions(summary):
        lines.append(f"{title:-^{_WIDTH}}")
        lines += _distribution_lines(name, distribution, percentiles)
    lines.append("=" * _WIDTH)
    lines += [f"failed {count} times: {reason}" for reason, count in summary.failures.items()]
    if not summary.are_all_counted_by_usage:
        lines.append("tokens are counted by chunks: the server sent no usage")
    return "\n".join(lines)


def save_json(path: Path, settings: dict[str, Any], summary: Summary, result: LoadResult) -> None:
    """Settings, figures, and each request's times, to read again without running again."""
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "summary": dataclasses.asdict(summary),
        "requests": [dataclasses.asdict(answer) for answer in result.answers],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def save_plot(path: Path, title: str, result: LoadResult) -> None:
    """Cumulative distributions of the four times, and chunks a second over the run."""
    matplotlib.use("agg")
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    figure.suptitle(title)
    good = [answer for answer in result.answers if answer.failure is None]
    samples = {
        "TTFT": [answer.ttft_s for answer in good],
        "TPOT": [tpot for answer in good if (tpot := answer.tpot_s) is not None],
        "ITL": [itl for answer in good for itl in answer.itls_s],
        "E2EL": [answer.e2el_s for answer in good],
    }
    panels: dict[str, Any] = figure.subplot_mosaic([["TTFT", "TPOT", "rate"], ["ITL", "E2EL", "rate"]])
    for name, seconds in samples.items():
        panels[name].ecdf(np.array(seconds or [0.0]) * 1000)
        panels[name].set(title=name, xlabel="ms", xscale="log", ylabel="share of samples")
        panels[name].grid(alpha=0.3)
    panels["rate"].stairs(*_chunks_per_second(result))
    panels["rate"].set(title="chunks a second", xlabel="s since the start", ylim=(0, None))
    panels["rate"].grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _totals(summary: Summary, rate: float | None) -> Iterator[tuple[str, str]]:
    yield "Successful requests", f"{summary.num_completed:<10}"
    yield "Failed requests", f"{summary.num_failed:<10}"
    if rate is not None:
        yield "Request rate configured (RPS)", f"{rate:<10.2f}"
    yield "Benchmark duration (s)", f"{summary.duration_s:<10.2f}"
    yield "Total input tokens", f"{summary.num_input_tokens:<10}"
    yield "Total generated tokens", f"{summary.num_output_tokens:<10}"
    yield "Request throughput (req/s)", f"{summary.request_throughput:<10.2f}"
    if summary.request_goodput is not None:
        yield "Request goodput (req/s)", f"{summary.request_goodput:<10.2f}"
    yield "Output token throughput (tok/s)", f"{summary.output_throughput:<10.2f}"
    yield "Peak concurrent requests", f"{summary.peak_concurrency:<10}"
    yield "Total token throughput (tok/s)", f"{summary.total_token_throughput:<10.2f}"
    yield "Client's share of one core (%)", f"{summary.client_cpu_share * 100:<10.1f}"


def _distributions(summary: Summary) -> Iterator[tuple[str, str, Distribution]]:
    yield "Time to First Token", "TTFT", summary.ttft
    yield "Time per Output Token (excl. 1st token)", "TPOT", summary.tpot
    yield "Inter-token Latency", "ITL", summary.itl
    yield "End-to-end Latency", "E2EL", summary.e2el


def _distribution_lines(name: str, distribution: Distribution, percentiles: Sequence[float]) -> Iterator[str]:
    rows = [("Mean", distribution.mean), ("Median", distribution.median)]
    rows += [(f"P{percentile:g}", distribution.percentiles[percentile]) for percentile in percentiles]
    for label, milliseconds in rows:
        value = f"{milliseconds:<10.2f}" if distribution.num_samples else "n/a"
        yield f"{f'{label} {name} (ms):':<{_LABEL_WIDTH}} {value}"


def _chunks_per_second(result: LoadResult) -> tuple[Any, Any]:
    """Counts and bin edges, at most 100 bins."""
    good = [answer for answer in result.answers if answer.failure is None]
    start_s = min((answer.sent_s for answer in good), default=0.0)
    times = [answer.sent_s - start_s + chunk for answer in good for chunk in answer.chunk_times_s]
    num_bins = int(np.clip(result.duration_s, 10, 100))
    counts, edges = np.histogram(times, bins=num_bins, range=(0.0, result.duration_s))
    return counts / (result.duration_s / num_bins), edges
