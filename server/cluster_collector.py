"""A cluster's figures as Prometheus metrics, read when they are scraped. Without a cluster there are none."""

from collections.abc import Callable, Iterable, Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from distllm.engine.pipeline.coordinator.snapshot import (
    ClusterSnapshot,
    LinkSnapshot,
    PeerSnapshot,
    PeerState,
    PredictionSnapshot,
    StageSnapshot,
)
from distllm.server.ports import EngineView

_PEER_STATES: tuple[PeerState, ...] = get_args(PeerState)


class ClusterCollector(Collector):
    """Reads `engine.cluster`. Its counters begin again at zero with every engine process or peer, as Prometheus
    allows."""

    def __init__(self, engine: EngineView) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        cluster = self._engine.cluster.value
        if cluster is not None:
            yield from _of_cluster(cluster)
            if cluster.predicted is not None:
                yield from _of_prediction(cluster.predicted)
            yield from _of_stages(cluster.stages)
            yield from _of_peers(cluster.peers)
            yield from _of_links(cluster.links)


def _of_cluster(cluster: ClusterSnapshot) -> Iterator[Metric]:
    yield _gauge("serving", "1 while a plan runs.", cluster.is_serving)
    yield _gauge("epoch", "Number of the plan.", cluster.epoch)
    yield _gauge("stages", "Stages of the plan.", len(cluster.stages))
    yield _gauge("steps_in_flight", "Steps that are not committed.", cluster.num_in_flight)
    yield _gauge("last_recovery_seconds", "Time without a plan at the last loss.", cluster.last_recovery_s)
    yield _counter("recoveries", "Losses that were recovered from.", cluster.recoveries_total)
    yield _counter("recovery_seconds", "Time without a plan after losses.", cluster.recovery_s_total)
    yield _counter("rebuilt_tokens", "Tokens whose KV was computed anew.", cluster.rebuilt_tokens_total)
    peers = GaugeMetricFamily("distllm_cluster_peers", "Peers by state.", labels=("state",))
    for state in _PEER_STATES:
        peers.add_metric((state,), sum(peer.state == state for peer in cluster.peers))
    yield peers


def _of_prediction(predicted: PredictionSnapshot) -> Iterator[Metric]:
    yield _gauge("predicted_ttft_seconds", "TTFT predicted of a single stream.", predicted.ttft_s)
    yield _gauge("predicted_tpot_seconds", "TPOT predicted of a single stream.", predicted.tpot_s)
    yield _gauge("predicted_tokens_per_second", "Predicted of the expected load.", predicted.tokens_per_s)


def _of_stages(stages: list[StageSnapshot]) -> Iterator[Metric]:
    def family(name: str, help_text: str, read: Callable[[StageSnapshot], float | None]) -> Metric:
        rows = (((str(number), stage.peer_id), read(stage)) for number, stage in enumerate(stages))
        return _gauges(name, help_text, ("stage", "peer"), rows)

    yield family("stage_seconds", "Mean time of the latest steps.", lambda stage: stage.step_s)
    yield family(
        "stage_predicted_seconds", "Time predicted of a step of one token.", lambda it: it.predicted_step_s
    )
    yield family("stage_layers", "Layers.", lambda stage: stage.end - stage.begin)
    yield family("stage_weight_bytes", "Bytes of weights.", lambda stage: stage.weight_bytes)
    yield family("stage_ranks", "Processes that share a stage.", lambda stage: stage.num_ranks)
    yield _gauges(
        "stage_info",
        "1 for how a stage computes.",
        ("stage", "peer", "quantization", "numerics"),
        (
            ((str(number), stage.peer_id, stage.quantization or "none", stage.numerics), 1)
            for number, stage in enumerate(stages)
        ),
    )
    yield family("stage_kv_blocks", "KV blocks that memory affords.", lambda stage: stage.num_blocks)


def _of_peers(peers: list[PeerSnapshot]) -> Iterator[Metric]:
    def family(name: str, help_text: str, read: Callable[[PeerSnapshot], float | None]) -> Metric:
        return _gauges(name, help_text, ("peer",), (((peer.peer_id,), read(peer)) for peer in peers))

    def counters(name: str, help_text: str, read: Callable[[PeerSnapshot], float]) -> Metric:
        metric = CounterMetricFamily(f"distllm_cluster_{name}", help_text, labels=("peer",))
        for peer in peers:
            metric.add_metric((peer.peer_id,), read(peer))
        return metric

    yield family("beat_age_seconds", "Time since a peer was heard.", lambda peer: peer.beat_age_s)
    yield family("busy_seconds", "Time that its present step has taken.", lambda peer: peer.busy_s)
    yield family("free_bytes", "Bytes of free memory.", lambda peer: peer.free_bytes)
    yield family("round_trip_seconds", "Time of a beat and its answer.", lambda peer: peer.round_trip_s)
    yield counters("peer_steps", "Steps computed.", lambda peer: peer.steps_total)
    yield counters("peer_compute_seconds", "Time in steps.", lambda peer: peer.compute_s_total)
    yield counters("peer_sent_bytes", "Bytes handed on.", lambda peer: peer.sent_bytes_total)


def _of_links(links: list[LinkSnapshot]) -> Iterator[Metric]:
    def family(name: str, help_text: str, read: Callable[[LinkSnapshot], float | None]) -> Metric:
        rows = (((link.source, link.target), read(link)) for link in links)
        return _gauges(name, help_text, ("source", "target"), rows)

    yield family("link_seconds", "Mean time until a frame was taken.", lambda link: link.frame_s)
    yield family("link_bytes_per_second", "Goodput while frames are sent.", lambda link: link.bytes_per_s)
    yield family("link_delay_seconds", "Time one way, as measured beforehand.", lambda link: link.delay_s)
    yield family("link_goodput_bytes_per_second", "As measured beforehand.", lambda link: link.goodput_bytes_per_s)
    yield family("link_relayed", "1 where the coordinator passes frames on.", lambda link: link.is_relayed)
    codecs = (((link.source, link.target, link.codec), 1.0) for link in links)
    yield _gauges("link_codec", "1 for the codec of its activations.", ("source", "target", "codec"), codecs)


def _gauge(name: str, help_text: str, value: float | None) -> Metric:
    return _gauges(name, help_text, (), (((), value),))


def _gauges(
    name: str, help_text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float | None]]
) -> Metric:
    """One sample for each row whose value is known."""
    family = GaugeMetricFamily(f"distllm_cluster_{name}", help_text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"distllm_cluster_{name}", help_text, value)
