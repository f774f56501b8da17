"""What stages take of their peers' memory, and which stages fit."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.pipeline.placement.measurements import Cluster, ModelSizes, PeerId, PeerMeasurements


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Of one model, where every stage has `min_blocks` blocks of KV at least. Peers may quantize it differently."""

    model: ModelSizes
    min_blocks: int
    bytes_before: Mapping[PeerId, Sequence[int]]
    """`bytes_before[peer_id][i]` are the weights of all layers before layer i on a peer."""

    @classmethod
    def of(cls, cluster: Cluster, min_blocks: int) -> "StageMemory":
        usual = _bytes_before(cluster.model)
        bytes_before = {it.peer_id: usual if it.model is None else _bytes_before(it.model) for it in cluster.peers}
        return cls(cluster.model, min_blocks, bytes_before)

    def weight_bytes(self, peer: PeerMeasurements, begin: int, end: int) -> int:
        """Of layers [begin, end), with the embedding and the head where the stage is first and last."""
        model, bytes_before = peer.model or self.model, self.bytes_before[peer.peer_id]
        num_bytes = bytes_before[end] - bytes_before[begin]
        if begin == 0:
            num_bytes += model.embedding_bytes
        if end == model.num_layers:
            num_bytes += model.head_bytes - (model.tied_bytes if begin == 0 else 0)
        return num_bytes

    def needed_bytes(self, peer: PeerMeasurements, begin: int, end: int) -> int:
        """What layers [begin, end) need on `peer`: weights and the fewest blocks."""
        return self.weight_bytes(peer, begin, end) + self.min_blocks * block_bytes(peer, end - begin)

    def num_blocks(self, peer: PeerMeasurements, begin: int, end: int) -> int:
        """Blocks of KV that fit on `peer` beside the weights of layers [begin, end)."""
        return max(0, peer.free_bytes - self.weight_bytes(peer, begin, end)) // block_bytes(peer, end - begin)

    def latest_end(self, peer: PeerMeasurements, begin: int) -> int:
        """The most layers from `begin` on that fit: `begin` itself if none does. Does not fall as `begin` rises."""
        ends = range(begin + 1, self.model.num_layers + 1)
        return begin + bisect_right(ends, peer.free_bytes, key=lambda end: self.needed_bytes(peer, begin, end))

    def earliest_begin(self, peer: PeerMeasurements, end: int) -> int:
        """The most layers up to `end` that fit, seen from their end: `end` itself if none does."""
        begins = range(end - 1, -1, -1)
        return end - bisect_right(begins, peer.free_bytes, key=lambda begin: self.needed_bytes(peer, begin, end))


def _bytes_before(model: ModelSizes) -> Sequence[int]:
    return tuple(accumulate(model.layer_bytes, initial=0))


def block_bytes(peer: PeerMeasurements, num_layers: int) -> int:
    """One block's KV in `num_layers` layers."""
    return BLOCK_SIZE * peer.kv_token_bytes * num_layers
