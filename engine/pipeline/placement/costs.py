"""What one step costs on each peer and edge, in whole nanoseconds: whole, so that no sum depends on its order.

Prediction and search both read these, so that what is searched is what is predicted. Every layer is taken to cost
what the measured one does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from distllm.engine.pipeline.placement.measurements import COORDINATOR, Cluster, EdgeCodec, Link, ModelSizes, PeerId
from distllm.engine.pipeline.placement.plan import Plan, Stage, Workload
from distllm.engine.pipeline.wire.codec_names import PLAIN, CodecName

_TOKEN_BYTES = 8
"""Of a token id, which is all that leaves the coordinator and comes back to it."""

Edge = tuple[PeerId, PeerId]


@dataclass(frozen=True, slots=True)
class EdgeCost:
    """Nanoseconds of one step on an edge. Steps queue for coding and transfer; delays overlap."""

    delay_ns: int
    transfer_ns: int
    is_relayed: bool = False
    codec: CodecName = PLAIN

    @property
    def total_ns(self) -> int:
        return self.delay_ns + self.transfer_ns


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Of a step with one number of rows. Only peers that the coordinator reaches both ways are in here."""

    num_layers: int
    layer_ns: Mapping[PeerId, int]
    head_ns: Mapping[PeerId, int]
    edges: Mapping[Edge, EdgeCost]

    def stage_ns(self, stage: Stage) -> int:
        is_last = stage.end == self.num_layers
        return self.layer_ns[stage.peer_id] * stage.num_layers + (self.head_ns[stage.peer_id] if is_last else 0)

    def round_ns(self, plan: Plan) -> int:
        """From the coordinator through all stages and back."""
        stages = sum(self.stage_ns(stage) for stage in plan.stages)
        return stages + sum(self.edges[edge].total_ns for edge in plan.edges)

    def bottleneck_ns(self, plan: Plan) -> int:
        """What the slowest stage or edge takes: steps cannot follow each other faster."""
        stages = max(self.stage_ns(stage) for stage in plan.stages)
        return max(stages, *(self.edges[edge].transfer_ns for edge in plan.edges))


def decode_costs(cluster: Cluster, num_rows: int) -> StepCosts:
    """Of a step that decodes one token of each of `num_rows` sequences."""
    layer_ns = {peer.peer_id: _layer_ns(peer.decode.at(num_rows)) for peer in cluster.peers}
    return _step_costs(cluster, num_rows, num_rows, layer_ns)


def prefill_costs(cluster: Cluster, workload: Workload) -> StepCosts:
    """Of one chunk of the workload's prompt, all chunks of equal size, each with one row of the head."""
    num_rows = -(-workload.prompt_tokens // workload.num_chunks)
    layer_ns = {peer.peer_id: _layer_ns(peer.prefill_s * num_rows) for peer in cluster.peers}
    return _step_costs(cluster, num_rows, 1, layer_ns)


def serving_costs(cluster: Cluster, workload: Workload, num_rows: int) -> StepCosts:
    """Of a step that decodes `num_rows` sequences, with its share of the prompts of those that follow them.

    Streams that go on for ever take in `prompt_tokens` for every `output_tokens` that they give.
    """
    share = num_rows / workload.output_tokens
    num_prompt_tokens = share * workload.prompt_tokens
    layer_ns = {
        peer.peer_id: _layer_ns(peer.decode.at(num_rows) + peer.prefill_s * num_prompt_tokens)
        for peer in cluster.peers
    }
    return _step_costs(cluster, num_rows + round(num_prompt_tokens), num_rows, layer_ns)


def first_token_ns(workload: Workload, round_ns: int, bottleneck_ns: int) -> int:
    """When the last chunk is back, of chunks that stream through the stages, at most `max_in_flight` under way.

    Chunk n is back one bottleneck after chunk n - 1 and one round after chunk n - max_in_flight, or later. Does not
    fall when `round_ns` or `bottleneck_ns` rise.
    """
    waits, followers = divmod(workload.num_chunks - 1, workload.max_in_flight)
    streaming = round_ns + (workload.num_chunks - 1) * bottleneck_ns
    return max(streaming, (1 + waits) * round_ns + followers * bottleneck_ns)


def _step_costs(cluster: Cluster, num_rows: int, num_sampled: int, layer_ns: dict[PeerId, int]) -> StepCosts:
    links = {(link.source, link.target): link for link in cluster.links}
    reached = [
        peer
        for peer in cluster.peers
        if (COORDINATOR, peer.peer_id) in links and (peer.peer_id, COORDINATOR) in links
    ]
    ids = [peer.peer_id for peer in reached]
    codecs = {(codec.source, codec.target): codec for codec in cluster.codecs}
    edges = {
        (source, target): _coded(codecs.get((source, target)), links, source, target, num_rows, cluster.model)
        for source in ids
        for target in ids
        if source != target
    }
    for peer_id in ids:
        edges[COORDINATOR, peer_id] = _edge_cost(links, COORDINATOR, peer_id, num_rows * _TOKEN_BYTES)
        edges[peer_id, COORDINATOR] = _edge_cost(links, peer_id, COORDINATOR, num_sampled * _TOKEN_BYTES)
    return StepCosts(
        num_layers=cluster.model.num_layers,
        layer_ns={peer_id: layer_ns[peer_id] for peer_id in ids},
        head_ns={peer.peer_id: _nanoseconds(peer.head.at(num_sampled)) for peer in reached},
        edges=edges,
    )


def _coded(
    coded: EdgeCodec | None,
    links: Mapping[Edge, Link],
    source: PeerId,
    target: PeerId,
    num_rows: int,
    model: ModelSizes,
) -> EdgeCost:
    """Between two stages, whose activations go in a codec or as they are."""
    if coded is None:
        return _edge_cost(links, source, target, num_rows * model.activation_bytes)
    sent = _edge_cost(links, source, target, num_rows * coded.token_bytes)
    coding_ns = _nanoseconds(num_rows * coded.coding_s)
    return replace(sent, transfer_ns=sent.transfer_ns + coding_ns, codec=coded.codec)


def _edge_cost(links: Mapping[Edge, Link], source: PeerId, target: PeerId, num_bytes: int) -> EdgeCost:
    """Without a link the coordinator relays: both legs, one after the other."""
    direct = links.get((source, target))
    legs = (direct,) if direct else (links[source, COORDINATOR], links[COORDINATOR, target])
    return EdgeCost(
        delay_ns=sum(_nanoseconds(leg.delay_s) for leg in legs),
        transfer_ns=sum(_nanoseconds(num_bytes / leg.bytes_per_s) for leg in legs),
        is_relayed=direct is None,
    )


def _layer_ns(seconds: float) -> int:
    """At least 1, as layers are counted by dividing by it."""
    return max(1, _nanoseconds(seconds))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
