"""Which peers a search considers: its time doubles with each, so no more than MAX_PEERS."""

from collections.abc import Sequence
from dataclasses import dataclass

from distllm.engine.pipeline.placement.costs import decode_costs
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Cluster, PeerId, PeerMeasurements
from distllm.engine.pipeline.placement.shortage import fits
from distllm.engine.pipeline.placement.stage_memory import StageMemory

MAX_PEERS = 10


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A peer that the search did not consider. `reason` completes "left out: "."""

    peer_id: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class PeerChoice:
    """The peers to consider, by id, and the others."""

    peers: tuple[PeerMeasurements, ...]
    left_out: tuple[LeftOut, ...]


def choose_peers(cluster: Cluster, memory: StageMemory) -> PeerChoice:
    """All that the coordinator reaches and that have room for a layer. Of more than MAX_PEERS the fastest.

    Fastest: the least decode time of a layer, its share of the way from and to the coordinator counted in, if the
    peer served as many layers as fit. If these have no room for the model, those with room for the most layers.
    """
    costs = decode_costs(cluster, 1)
    left_out, usable = [], {}
    for peer in sorted(cluster.peers, key=lambda peer: peer.peer_id):
        most_layers = _most_layers(peer, memory)
        if peer.peer_id not in costs.layer_ns:
            left_out.append(LeftOut(peer.peer_id, "no way between the coordinator and it is measured"))
        elif most_layers == 0:
            left_out.append(LeftOut(peer.peer_id, "it has no room for a layer"))
        else:
            usable[peer] = most_layers
    if len(usable) <= MAX_PEERS:
        return PeerChoice(tuple(usable), tuple(left_out))

    def seconds_per_layer(peer: PeerMeasurements) -> float:
        way = costs.edges[COORDINATOR, peer.peer_id].total_ns + costs.edges[peer.peer_id, COORDINATOR].total_ns
        return costs.layer_ns[peer.peer_id] + way / usable[peer]

    chosen, reason = sorted(usable, key=seconds_per_layer)[:MAX_PEERS], f"{MAX_PEERS} peers are faster a layer"
    if not fits(chosen, memory):
        chosen = sorted(usable, key=lambda peer: -usable[peer])[:MAX_PEERS]
        reason = f"{MAX_PEERS} peers have room for more layers, and the fastest have too little"
    return PeerChoice(
        tuple(peer for peer in usable if peer in chosen),
        (*left_out, *(LeftOut(peer.peer_id, reason) for peer in usable if peer not in chosen)),
    )


def _most_layers(peer: PeerMeasurements, memory: StageMemory) -> int:
    begins: Sequence[int] = range(memory.model.num_layers)
    return max(memory.latest_end(peer, begin) - begin for begin in begins)
