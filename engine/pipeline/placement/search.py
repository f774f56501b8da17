"""The best plan for a cluster, exactly: no plan that fits is faster by what is predicted.

Latency: the least TPOT of a single stream, then the least TTFT. Throughput: the most tokens a second, with room for
the KV of all streams, or of as many as any plan has room for. Among equals, fewer peers, then smaller ids, win.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from distllm.engine.pipeline.placement.costs import StepCosts, decode_costs, first_token_ns, prefill_costs
from distllm.engine.pipeline.placement.measurements import Cluster
from distllm.engine.pipeline.placement.peer_choice import LeftOut, PeerChoice, choose_peers
from distllm.engine.pipeline.placement.plan import Objective, Plan, Workload
from distllm.engine.pipeline.placement.prediction import Prediction, cycle_ns, divisions_of, predict
from distllm.engine.pipeline.placement.search_space import SearchSpace
from distllm.engine.pipeline.placement.shortage import Shortage, fits, shortages
from distllm.engine.pipeline.placement.stage_memory import StageMemory


@dataclass(frozen=True, slots=True)
class Found:
    """The best plan of all but the peers `left_out`."""

    plan: Plan
    prediction: Prediction
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class NothingFits:
    """No plan has room for the weights and the `min_blocks`. `shortages` say what one peer alone lacks."""

    min_blocks: int
    shortages: tuple[Shortage, ...]
    left_out: tuple[LeftOut, ...]


SearchResult = Found | NothingFits


def search_plan(cluster: Cluster, workload: Workload, objective: Objective) -> SearchResult:
    """Considers at most MAX_PEERS peers, by the rule of choose_peers."""
    num_streams = workload.num_streams if objective == "throughput" else 1
    memory = _memory(cluster, workload, num_streams)
    choice = choose_peers(cluster, memory)
    if not fits(choice.peers, memory):
        num_streams = _most_streams(cluster, workload, num_streams - 1)
        memory = _memory(cluster, workload, max(1, num_streams))
        choice = choose_peers(cluster, memory)
    if not num_streams:
        return _nothing_fits(choice, memory)
    space = SearchSpace(choice.peers, memory)
    if objective == "latency":
        plan = _least_latency(cluster, workload, space)
    else:
        plan = _most_throughput(cluster, num_streams, workload.max_in_flight, space)
    return Found(plan, predict(cluster, plan, workload), choice.left_out)


def _memory(cluster: Cluster, workload: Workload, num_streams: int) -> StageMemory:
    return StageMemory.of(cluster.model, max(workload.min_blocks, num_streams * workload.blocks_per_stream))


def _most_streams(cluster: Cluster, workload: Workload, most: int) -> int:
    """The most streams, up to `most`, whose KV a plan has room for; 0 where there is no plan at all."""

    def is_too_many(num_streams: int) -> bool:
        memory = _memory(cluster, workload, num_streams)
        return not fits(choose_peers(cluster, memory).peers, memory)

    return bisect_left(range(1, most + 1), True, key=is_too_many)


def _nothing_fits(choice: PeerChoice, memory: StageMemory) -> NothingFits:
    lacking = shortages(choice.peers, memory)
    return NothingFits(memory.min_blocks, lacking, choice.left_out)


def _least_latency(cluster: Cluster, workload: Workload, space: SearchSpace) -> Plan:
    single, chunk = decode_costs(cluster, 1), prefill_costs(cluster, workload)
    limits_ns = space.limits_ns(chunk)
    fastest = space.cheapest(single, chunk, limits_ns[-1], then=chunk)
    assert fastest, "a plan fits in memory, and no bottleneck is above the last limit"
    least_ns = single.round_ns(fastest)

    def as_fast(limit_ns: int) -> Plan | None:
        plan = space.cheapest(single, chunk, limit_ns, then=chunk)
        return plan if plan and single.round_ns(plan) == least_ns else None

    def value(round_ns: int, bottleneck_ns: int) -> int:
        return first_token_ns(workload, round_ns, bottleneck_ns)

    return _least(limits_ns, as_fast, chunk, value, inf) or fastest


def _most_throughput(cluster: Cluster, num_streams: int, max_in_flight: int, space: SearchSpace) -> Plan:
    """The shortest cycle in which every stream gets a token, over all numbers of micro-batches."""
    best, best_ns = None, inf
    for count, num_rows in divisions_of(num_streams, max_in_flight):
        costs = decode_costs(cluster, num_rows)
        plan = _least(
            space.limits_ns(costs),
            partial(space.cheapest, costs, costs),
            costs,
            partial(cycle_ns, count),
            best_ns,
        )
        if plan:
            best, best_ns = plan, cycle_ns(count, costs.round_ns(plan), costs.bottleneck_ns(plan))
    assert best, "a plan fits in memory, and any cycle is below infinity"
    return best


def _least(
    limits_ns: Sequence[int],
    cheapest: Callable[[int], Plan | None],
    costs: StepCosts,
    value: Callable[[int, int], int],
    below: float,
) -> Plan | None:
    """The plan with the least `value(round_ns, bottleneck_ns)`, None unless that is less than `below`.

    `value` does not fall when either rises. `cheapest(limit_ns)` has the shortest round of all plans whose
    bottleneck keeps within the limit. So the one for limit i leaves two intervals: limits below its bottleneck,
    with rounds no shorter than its own, and limits above i. In between nothing is better. The first limit asked
    for is the highest that could do, as often it shows that none does.
    """
    best: Plan | None = None
    intervals = [(0, len(limits_ns), 0)]  # begin, end, and what no round of their plans is shorter than
    while intervals:
        begin, end, round_ns = intervals.pop()
        end = bisect_left(limits_ns, below, begin, end, key=partial(value, round_ns))
        if begin >= end:
            continue
        middle = (begin + end) // 2 if round_ns else end - 1
        plan = cheapest(limits_ns[middle])
        if plan is None:
            intervals.append((middle + 1, end, round_ns))
            continue
        shortest_ns, bottleneck_ns = costs.round_ns(plan), costs.bottleneck_ns(plan)
        if value(shortest_ns, bottleneck_ns) < below:
            best, below = plan, value(shortest_ns, bottleneck_ns)
        intervals.append((middle + 1, end, round_ns))
        intervals.append((begin, bisect_left(limits_ns, bottleneck_ns, begin, end), shortest_ns))
    return best
