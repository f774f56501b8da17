"""Prometheus metrics of the front end and, read at scrape time, of the engine. An own registry, no globals.

Names are vLLM's where they mean the same, so that existing boards work; ours begin with distllm_.
"""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.registry import Collector

from distllm.scheduler.messages import SequenceOutput
from distllm.server.cluster_collector import ClusterCollector
from distllm.server.engine_collector import EngineCollector
from distllm.server.ports import EngineView
from distllm.server.routing.forecast import Forecast
from distllm.server.routing.route_metrics import RouteMetrics

_TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640,
)  # fmt: skip
_TOKEN_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920,
)  # fmt: skip
_HTTP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_LENGTH_BUCKETS = tuple(
    float(factor * 10**power) for power in range(6) for factor in (1, 2, 5)
)  # 1, 2, 5, 10 ... 500,000
_FINISH_REASONS = ("stop", "length", "abort", "error")


class Metrics:
    """All metrics of one server."""

    def __init__(self, engine: EngineView, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": "0"}
        self._registry.register(EngineCollector(engine, model_name))
        self._registry.register(ClusterCollector(engine))
        self.routes = RouteMetrics(self._registry)
        self.ttft_s = self._histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT_BUCKETS)
        self.itl_s = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of a sequence.", _TOKEN_BUCKETS
        )
        self.tpot_s = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time a token after the first.", _TOKEN_BUCKETS
        )
        self.e2e_s = self._histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to end of a request.", _REQUEST_BUCKETS
        )
        self.queue_s = self._histogram(
            "vllm:request_queue_time_seconds", "Time in the waiting queue.", _REQUEST_BUCKETS
        )
        self.prompt_length = self._histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", _LENGTH_BUCKETS
        )
        self.generation_length = self._histogram(
            "vllm:request_generation_tokens", "Tokens generated for a sequence.", _LENGTH_BUCKETS
        )
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of requests that were begun.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self.success = self._finish_counters()
        self.http_requests = Counter(
            "distllm_http_requests",
            "HTTP requests by route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.http_s = Histogram(
            "distllm_http_request_duration_seconds",
            "Time to the end of a response.",
            ("route",),
            buckets=_HTTP_BUCKETS,
            registry=self._registry,
        )

    def register(self, collector: Collector) -> None:
        """Add figures that are read when they are scraped."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """The text exposition of everything."""
        return generate_latest(self._registry)

    @contextlib.contextmanager
    def observe(
        self, num_prompt_tokens: int, num_sequences: int, forecast: Forecast
    ) -> "Iterator[RequestObserver]":
        """Measure one engine request from now until the block is left, beside what was predicted of it."""
        observer = RequestObserver(self, num_prompt_tokens, num_sequences, forecast)
        try:
            yield observer
        finally:
            observer.close()

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(name, help_text, tuple(self._labels), buckets=buckets, registry=self._registry)
        return metric.labels(**self._labels)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, tuple(self._labels), registry=self._registry).labels(**self._labels)

    def _finish_counters(self) -> dict[str, Counter]:
        names = (*self._labels, "finished_reason")
        counter = Counter("vllm:request_success", "Finished sequences by reason.", names, registry=self._registry)
        return {reason: counter.labels(**self._labels, finished_reason=reason) for reason in _FINISH_REASONS}


class RequestObserver:
    """Times one engine request. A sequence that never finished counts as aborted when it is closed."""

    def __init__(self, metrics: Metrics, num_prompt_tokens: int, num_sequences: int, forecast: Forecast) -> None:
        self._metrics = metrics
        self._forecast = forecast
        self._num_prompt_tokens = num_prompt_tokens
        self._begun = time.perf_counter()
        self._first_at: dict[int, float] = {}
        self._last_at: dict[int, float] = {}
        self._num_tokens = dict.fromkeys(range(num_sequences), 0)  # of unfinished sequences
        self._has_output = False

    def on_output(self, output: SequenceOutput) -> None:
        now = time.perf_counter()
        if not self._has_output:
            self._on_first_output(output, now)
        num_new = len(output.token_ids)
        if not num_new or output.index not in self._num_tokens:
            return
        self._num_tokens[output.index] += num_new
        self._metrics.generation_tokens.inc(num_new)
        if (last_at := self._last_at.get(output.index)) is not None:
            self._metrics.itl_s.observe((now - last_at) / num_new)
        else:
            self._first_at[output.index] = now
        self._last_at[output.index] = now

    def on_finished(self, index: int, reason: str) -> None:
        num_tokens = self._num_tokens.pop(index, None)
        if num_tokens is None:
            return
        self._metrics.success[reason].inc()
        self._metrics.generation_length.observe(num_tokens)
        if num_tokens > 1:
            tpot_s = (self._last_at[index] - self._first_at[index]) / (num_tokens - 1)
            self._metrics.tpot_s.observe(tpot_s)
            self._metrics.routes.note_tpot(self._forecast, tpot_s)

    def close(self) -> None:
        for index in list(self._num_tokens):
            self.on_finished(index, "abort")
        self._metrics.e2e_s.observe(time.perf_counter() - self._begun)

    def _on_first_output(self, output: SequenceOutput, now: float) -> None:
        self._has_output = True
        self._metrics.prompt_tokens.inc(self._num_prompt_tokens)
        self._metrics.prompt_length.observe(self._num_prompt_tokens)
        self._metrics.ttft_s.observe(now - self._begun)
        self._metrics.routes.note_ttft(self._forecast, now - self._begun)
        if output.queue_s is not None:
            self._metrics.queue_s.observe(output.queue_s)
