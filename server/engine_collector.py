"""The engine's own figures as Prometheus metrics, read when they are scraped: nothing is done per step."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from distllm.server.ports import EngineView

_STATES = ("starting", "ready", "restarting", "draining", "failed", "stopped")


class EngineCollector(Collector):
    """Reads `engine.stats`. Its counters begin again at zero with every engine process, as Prometheus allows."""

    def __init__(self, engine: EngineView, model_name: str) -> None:
        self._engine = engine
        self._labels = {"model_name": model_name, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        yield self._gauge("vllm:num_requests_running", "Sequences in the running batch.", stats.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences that wait to run.", stats.num_waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Fraction of KV blocks in use.", stats.kv_cache_usage)
        yield self._counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_query_tokens_total
        )
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found.", stats.prefix_hit_tokens_total)
        yield self._counter("vllm:num_preemptions", "Preemptions.", stats.preemptions_total)
        yield self._gauge("distllm_kv_blocks", "KV blocks of the pool.", stats.num_blocks)
        yield self._gauge("distllm_kv_blocks_free", "Free KV blocks.", stats.num_free_blocks)
        yield self._gauge("distllm_kv_blocks_cached", "Cached KV blocks.", stats.num_cached_blocks)
        yield self._counter("distllm_engine_steps", "Steps.", stats.steps_total)
        yield self._counter("distllm_engine_schedule_seconds", "Time to schedule.", stats.schedule_s_total)
        yield self._counter("distllm_engine_execute_seconds", "Time in steps.", stats.execute_s_total)
        yield self._counter("distllm_engine_publish_seconds", "Time to publish.", stats.publish_s_total)
        yield self._counter("distllm_engine_restarts", "Engines started anew.", self._engine.num_restarts)
        yield self._loading()
        yield self._state()

    def _loading(self) -> Metric:
        loading = self._engine.loading
        is_up = self._engine.state in ("ready", "restarting", "draining")
        fraction = loading.fraction if loading is not None else float(is_up)
        return self._gauge("distllm_engine_loading_fraction", "Fraction of a start that is done.", fraction)

    def _state(self) -> Metric:
        family = GaugeMetricFamily("distllm_engine_state", "1 for the state.", labels=("state",))
        for state in _STATES:
            family.add_metric((state,), float(self._engine.state == state))
        return family

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, help_text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, help_text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value)
        return family
