"""The plans that fit in memory, and the cheapest of them whose every stage and edge keeps within a limit."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from distllm.engine.pipeline.placement.costs import StepCosts
from distllm.engine.pipeline.placement.measurements import COORDINATOR, PeerId, PeerMeasurements
from distllm.engine.pipeline.placement.plan import Plan, Stage
from distllm.engine.pipeline.placement.stage_memory import StageMemory
from distllm.engine.pipeline.placement.subset_program import (
    UNREACHED,
    AllowedStages,
    ChainCosts,
    cheapest_chain,
)


class SearchSpace:
    """Of `peers` in the order that breaks ties, all in the costs that it is asked with.

    Of plans with `num_stages` stages, or with any number where that is None.
    """

    def __init__(
        self, peers: Sequence[PeerMeasurements], memory: StageMemory, num_stages: int | None = None
    ) -> None:
        self._num_stages = num_stages
        self._ids = [peer.peer_id for peer in peers]
        self._num_layers = memory.model.num_layers
        ends = range(self._num_layers + 1)
        self._farthest = np.array([memory.latest_end(peer, 0) for peer in peers])
        self._earliest = np.array([[memory.earliest_begin(peer, end) for end in ends] for peer in peers])

    def limits_ns(self, costs: StepCosts) -> list[int]:
        """In rising order, all that the bottleneck of a plan can be."""
        limits = {costs.edges[edge].transfer_ns for edge in costs.edges}
        for peer_id in self._ids:
            layer_ns = costs.layer_ns[peer_id]
            limits.update(layer_ns * num_layers for num_layers in range(1, self._num_layers + 1))
            limits.update(layer_ns * n + costs.head_ns[peer_id] for n in range(1, self._num_layers + 1))
        return sorted(limits)

    def cheapest(
        self, costs: StepCosts, occupancy: StepCosts, limit_ns: int, then: StepCosts | None = None
    ) -> Plan | None:
        """The plan with the shortest round by `costs`, of equal ones by `then`; None where there is none.

        Only of plans whose bottleneck by `occupancy` is `limit_ns` or less.
        """
        allowed = self._allowed(occupancy, limit_ns)
        ends = np.arange(self._num_layers + 1)
        most_layers = np.maximum(ends - allowed.earliest, ends * allowed.from_zero).max(axis=1)
        if most_layers.sum() < self._num_layers:
            return None
        chain = cheapest_chain(self._chain_costs(costs, then, occupancy, limit_ns), allowed, self._num_stages)
        if chain is None:
            return None
        layers = pairwise((0, *chain.ends))
        return Plan(tuple(Stage(self._ids[peer], *span) for peer, span in zip(chain.peers, layers, strict=True)))

    def _allowed(self, occupancy: StepCosts, limit_ns: int) -> AllowedStages:
        """Stages that fit in memory and in the limit."""
        ends = np.arange(self._num_layers + 1)
        most = np.array([self._most_layers(occupancy, peer, limit_ns) for peer in range(len(self._ids))])
        return AllowedStages(
            from_zero=(ends > 0) & (ends <= most) & (ends <= self._farthest[:, None]),
            earliest=np.minimum(ends, np.maximum(self._earliest, ends - most)),
        )

    def _most_layers(self, occupancy: StepCosts, peer: int, limit_ns: int) -> NDArray[np.intp]:
        """[L + 1]: of a stage up to each end, by time alone."""
        layer_ns, head_ns = occupancy.layer_ns[self._ids[peer]], occupancy.head_ns[self._ids[peer]]
        most = np.full(self._num_layers + 1, min(self._num_layers, limit_ns // layer_ns))
        most[-1] = min(self._num_layers, max(0, limit_ns - head_ns) // layer_ns)
        return most

    def _chain_costs(
        self, costs: StepCosts, then: StepCosts | None, occupancy: StepCosts, limit_ns: int
    ) -> ChainCosts:
        steps = (costs,) if then is None else (costs, then)
        number: Callable[..., complex] = float if then is None else complex

        def edge(source: PeerId, target: PeerId) -> complex:
            if source == target or occupancy.edges[source, target].transfer_ns > limit_ns:
                return UNREACHED
            return number(*(step.edges[source, target].total_ns for step in steps))

        ids = self._ids
        return ChainCosts(
            layer=np.array([number(*(step.layer_ns[peer_id] for step in steps)) for peer_id in ids]),
            head=np.array([number(*(step.head_ns[peer_id] for step in steps)) for peer_id in ids]),
            entry=np.array([edge(COORDINATOR, peer_id) for peer_id in ids]),
            hop=np.array([[edge(source, target) for target in ids] for source in ids]),
            exit=np.array([edge(peer_id, COORDINATOR) for peer_id in ids]),
        )
