"""Figures of resumable streams as Prometheus metrics, read when they are scraped."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from distllm.server.resuming.kept_streams import KeptStreams


class StreamsCollector(Collector):
    def __init__(self, streams: KeptStreams) -> None:
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        streams, counts = self._streams, self._streams.counts
        yield GaugeMetricFamily("distllm_streams_kept", "Resumable streams that are kept.", streams.num_kept)
        yield GaugeMetricFamily("distllm_streams_kept_bytes", "Memory for their events.", streams.num_bytes)
        yield GaugeMetricFamily("distllm_stream_log_bytes", "Disk for them.", streams.num_log_bytes)
        yield CounterMetricFamily("distllm_streams_resumed", "Times that a client came back.", counts.resumed)
        yield CounterMetricFamily("distllm_streams_restored", "Streams of before a restart.", counts.restored)
        yield CounterMetricFamily("distllm_streams_expired", "Ended because no client came back.", counts.expired)
        yield CounterMetricFamily("distllm_streams_unkept", "Not resumable for want of room.", counts.unkept)
