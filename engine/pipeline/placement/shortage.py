"""Whether any plan fits in memory, and if not, what more memory on one peer would make one fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distllm.engine.pipeline.placement.measurements import PeerId, PeerMeasurements
from distllm.engine.pipeline.placement.stage_memory import StageMemory


@dataclass(frozen=True, slots=True)
class Shortage:
    """With `short_bytes` more on this peer alone a plan would fit; it would serve layers [begin, end)."""

    peer_id: PeerId
    free_bytes: int
    short_bytes: int
    begin: int
    end: int


def fits(peers: Sequence[PeerMeasurements], memory: StageMemory) -> bool:
    """Whether some chain of these peers has room for every layer."""
    return _farthest_ends(peers, memory)[-1] == memory.model.num_layers


def shortages(peers: Sequence[PeerMeasurements], memory: StageMemory) -> tuple[Shortage, ...]:
    """Of each peer, least first, where nothing fits: the others serve what they can before and after it."""
    found = (_shortage(peer, [other for other in peers if other is not peer], memory) for peer in peers)
    return tuple(sorted(found, key=lambda shortage: (shortage.short_bytes, shortage.peer_id)))


def _shortage(peer: PeerMeasurements, others: Sequence[PeerMeasurements], memory: StageMemory) -> Shortage:
    farthest, earliest = _farthest_ends(others, memory), _earliest_begins(others, memory)
    gaps = zip(farthest, reversed(earliest), strict=True)  # subset i and its complement
    needed, begin, end = min((memory.needed_bytes(peer, begin, end), begin, end) for begin, end in gaps)
    return Shortage(peer.peer_id, peer.free_bytes, needed - peer.free_bytes, begin, end)


def _farthest_ends(peers: Sequence[PeerMeasurements], memory: StageMemory) -> list[int]:
    """By subset of peers, in bits: the latest end of a chain of them that begins with layer 0."""
    return _by_subset(peers, 0, memory.latest_end, max)


def _earliest_begins(peers: Sequence[PeerMeasurements], memory: StageMemory) -> list[int]:
    """By subset of peers, in bits: the earliest begin of a chain of them that ends with the last layer."""
    return _by_subset(peers, memory.model.num_layers, memory.earliest_begin, min)


def _by_subset(
    peers: Sequence[PeerMeasurements],
    start: int,
    extend: Callable[[PeerMeasurements, int], int],
    best: Callable[..., int],
) -> list[int]:
    known: dict[tuple[int, int], int] = {}

    def extended(index: int, layer: int) -> int:
        if (index, layer) not in known:
            known[index, layer] = extend(peers[index], layer)
        return known[index, layer]

    reached = [start]
    for subset in range(1, 1 << len(peers)):
        members = [index for index in range(len(peers)) if subset >> index & 1]
        reached.append(best(extended(index, reached[subset ^ 1 << index]) for index in members))
    return reached
