"""The cheapest chain of stages, exactly: a dynamic programme over subsets of peers, in numpy.

    cheapest[peers used, last of them, layers done]  =  min over (peer before, layers it had done)

Knows costs and which stages are allowed; what these stand for is search.py's.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.inexact[Any]]
"""Whole numbers below 2**53, so that sums are exact. Complex ones are pairs: numpy compares real parts first."""

UNREACHED = np.inf


@dataclass(frozen=True, slots=True)
class ChainCosts:
    """Of N peers: costs add up along a chain. An edge that must not be used costs UNREACHED."""

    layer: Costs  # [N]
    head: Costs  # [N]
    entry: Costs  # [N], from the coordinator to the first stage
    hop: Costs  # [N, N], from the row's peer to the column's; none to itself
    exit: Costs  # [N], from the last stage to the coordinator


@dataclass(frozen=True, slots=True)
class AllowedStages:
    """Which stages N peers may serve, of L layers: where [begin, end) is allowed, so is [begin + 1, end).

    Those from layer 0 on, which have the embedding, are told apart from those that follow others.
    """

    from_zero: NDArray[np.bool_]  # [N, L + 1]: [0, end)
    earliest: NDArray[np.intp]  # [N, L + 1]: the smallest begin of a stage up to end; end itself if there is none


@dataclass(frozen=True, slots=True)
class Chain:
    """Peers by index and the layers done when each has done its own."""

    peers: tuple[int, ...]
    ends: tuple[int, ...]


def cheapest_chain(costs: ChainCosts, allowed: AllowedStages, num_stages: int | None = None) -> Chain | None:
    """None where no chain is allowed. Of equally cheap ones the fewest peers, then the smallest last peer.

    Of `num_stages` stages where that is given, else of any number.
    """
    cheapest = _cheapest(costs, allowed, num_stages)
    complete = _complete(costs, cheapest)
    if num_stages is not None:
        sizes = np.array([subset.bit_count() for subset in range(len(complete))])
        complete[sizes != num_stages] = UNREACHED
    least = complete.min()
    if not np.isfinite(least):
        return None
    subset, last = min(
        ((int(subset), int(last)) for subset, last in np.argwhere(complete == least)),
        key=lambda state: (state[0].bit_count(), state[1], state[0]),
    )
    return _trace(costs, allowed, cheapest, subset, last)


def _cheapest(costs: ChainCosts, allowed: AllowedStages, num_stages: int | None) -> Costs:
    """[2**N, N, L + 1], with subsets in bits, as far as states could be part of a cheapest chain."""
    num_peers, num_ends = allowed.from_zero.shape
    layers = costs.layer[:, None] * np.arange(num_ends)  # [N, L + 1]
    cheapest = np.full((1 << num_peers, num_peers, num_ends), UNREACHED, costs.layer.dtype)
    for peer in range(num_peers):
        cheapest[1 << peer, peer] = np.where(allowed.from_zero[peer], costs.entry[peer] + layers[peer], UNREACHED)
    for size in range(1, min(num_stages or num_peers, num_peers)):
        if num_stages is None and _is_hopeless(costs, cheapest, size):
            break
        for peer in range(num_peers):
            subsets, members = _subsets(num_peers, size, peer)
            arrived = cheapest[subsets[:, None], members]  # [num_subsets, size, L + 1]
            arrived += costs.hop[members, peer][:, :, None]
            begun = arrived.min(axis=1) - layers[peer]
            cheapest[subsets | 1 << peer, peer] = _window_minima(begun, allowed.earliest[peer]) + layers[peer]
    return cheapest


def _complete(costs: ChainCosts, cheapest: Costs) -> Costs:
    """[2**N, N]: of chains that have done all layers and are back."""
    return cheapest[:, :, -1] + costs.head + costs.exit


def _is_hopeless(costs: ChainCosts, cheapest: Costs, size: int) -> bool:
    """Whether no chain of more than `size` peers can be cheaper than the cheapest of as many or fewer."""
    num_peers, num_ends = cheapest.shape[1:]
    subsets, members = _subsets(num_peers, size)
    begun = cheapest[subsets[:, None], members].min(axis=(0, 1))  # [L + 1]
    rest = costs.layer.min() * np.arange(num_ends - 1, -1, -1) + costs.head.min() + costs.exit.min()
    bound = (begun + rest + costs.hop.min())[:-1].min()
    found = _complete(costs, cheapest).min()
    return bool(np.minimum(bound, found) == found)


@cache
def _subsets(num_peers: int, size: int, without: int | None = None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All of `size` of the peers: in bits, [num_subsets], and their members, [num_subsets, size]."""
    peers = [peer for peer in range(num_peers) if peer != without]
    members = np.array(list(combinations(peers, size)))
    return (1 << members).sum(axis=1), members


def _window_minima(values: Costs, begins: NDArray[np.intp]) -> Costs:
    """Column i is the least of values[:, begins[i]:i], UNREACHED where that is empty.

    `table[:, i]` holds the least of values[:, i:i + span]; two of them cover any window of span to 2 * span.
    """
    ends = np.arange(len(begins))
    widths = ends - begins
    minima = np.full_like(values, UNREACHED)
    table, span = values, 1
    while span <= widths.max():
        covered = ends[(span <= widths) & (widths < 2 * span)]
        minima[:, covered] = np.minimum(table[:, begins[covered]], table[:, covered - span])
        table = np.minimum(table[:, :-span], table[:, span:])
        span *= 2
    return minima


def _trace(costs: ChainCosts, allowed: AllowedStages, cheapest: Costs, subset: int, last: int) -> Chain:
    """Walk from a complete state back to the coordinator, by the states whose costs add up."""
    end = cheapest.shape[2] - 1
    peers, ends = [last], [end]
    while subset != 1 << last:
        begins = np.arange(allowed.earliest[last, end], end)
        stage = costs.layer[last] * (end - begins)
        through = cheapest[subset ^ 1 << last][:, begins] + costs.hop[:, last, None] + stage  # [N, begins]
        before, column = np.argwhere(through == cheapest[subset, last, end])[0]
        subset, last, end = subset ^ 1 << last, int(before), int(begins[column])
        peers.append(last)
        ends.append(end)
    return Chain(tuple(reversed(peers)), tuple(reversed(ends)))
