"""What the best plan would be with a peer more or less, and whether it pays to change to another plan."""

from dataclasses import dataclass

from msgspec.structs import replace

from distllm.engine.pipeline.placement.measurements import Cluster, EdgeCodec, Link, PeerId, PeerMeasurements
from distllm.engine.pipeline.placement.plan import Objective, Workload
from distllm.engine.pipeline.placement.prediction import Prediction
from distllm.engine.pipeline.placement.search import Found, SearchResult, search_plan


@dataclass(frozen=True, slots=True)
class Difference:
    """After minus before."""

    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    num_running: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class WhatIf:
    """`change` is what would be different, as in "without b". No difference where nothing fits before or after."""

    change: str
    after: SearchResult
    difference: Difference | None


def if_peer_lost(
    cluster: Cluster,
    workload: Workload,
    objective: Objective,
    before: SearchResult,
    peer_id: PeerId,
    num_stages: int | None = None,
) -> WhatIf:
    """Of the best plan `before`, for this cluster. Raises KeyError for a peer that is not there.

    Where fewer than `num_stages` peers are left, each has a stage.
    """
    cluster.peer(peer_id)
    rest = without_peer(cluster, peer_id)
    if num_stages is not None:
        num_stages = max(1, min(num_stages, len(rest.peers)))
    after = search_plan(rest, workload, objective, num_stages)
    return WhatIf(f"without {peer_id}", after, _difference(before, after))


def if_peer_added(
    cluster: Cluster,
    workload: Workload,
    objective: Objective,
    before: SearchResult,
    peer: PeerMeasurements,
    links: tuple[Link, ...],
    num_stages: int | None = None,
    codecs: tuple[EdgeCodec, ...] = (),
) -> WhatIf:
    """Of the best plan `before`, for this cluster. Raises ValueError where the peer or a link is there already."""
    larger = Cluster(cluster.model, (*cluster.peers, peer), (*cluster.links, *links), (*cluster.codecs, *codecs))
    after = search_plan(larger, workload, objective, num_stages)
    return WhatIf(f"with {peer.peer_id}", after, _difference(before, after))


def without_peer(cluster: Cluster, peer_id: PeerId) -> Cluster:
    """The cluster without the peer, its links and their codecs."""
    return replace(
        cluster,
        peers=tuple(peer for peer in cluster.peers if peer.peer_id != peer_id),
        links=tuple(link for link in cluster.links if peer_id not in (link.source, link.target)),
        codecs=tuple(codec for codec in cluster.codecs if peer_id not in (codec.source, codec.target)),
    )


def pays_back(
    old: Prediction,
    new: Prediction,
    reload_s: float,
    horizon_s: float,
    objective: Objective = "throughput",
    least_gain: float = 0.2,
) -> bool:
    """Whether changing plans, and serving nothing for `reload_s`, gives more tokens in `horizon_s` by that part.

    Predictions are no better than a fifth, so that less is hardly worth a change.
    Tokens of all streams for throughput, of a single one for latency.
    """
    serving_s = max(0.0, horizon_s - reload_s)
    return _rate(new, objective) * serving_s > (1 + least_gain) * _rate(old, objective) * horizon_s


def _rate(prediction: Prediction, objective: Objective) -> float:
    if objective == "throughput" or not prediction.num_running:
        return prediction.tokens_per_s
    return 1 / prediction.tpot_s


def _difference(before: SearchResult, after: SearchResult) -> Difference | None:
    if not (isinstance(before, Found) and isinstance(after, Found)):
        return None
    old, new = before.prediction, after.prediction
    return Difference(
        ttft_s=new.ttft_s - old.ttft_s,
        tpot_s=new.tpot_s - old.tpot_s,
        tokens_per_s=new.tokens_per_s - old.tokens_per_s,
        num_running=new.num_running - old.num_running,
        num_blocks=new.num_blocks - old.num_blocks,
    )
