"""The best plan for a cluster, exactly: no plan that fits is faster by what is predicted.

Latency: the least TPOT of a single stream, then the least TTFT. Throughput: the most tokens a second, with room for
the KV of all streams, or of as many as any plan has room for. Among equals, fewer peers, then smaller ids, win.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from math import inf

from distllm.engine.pipeline.placement.bottleneck_search import Candidate, least
from distllm.engine.pipeline.placement.costs import (
    StepCosts,
    decode_costs,
    first_token_ns,
    prefill_costs,
    serving_costs,
)
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


def search_plan(
    cluster: Cluster, workload: Workload, objective: Objective, num_stages: int | None = None
) -> SearchResult:
    """Considers at most MAX_PEERS peers, by the rule of choose_peers; plans of `num_stages` alone if given.

    Nothing fits, and nothing is short, where the peers have room for the model in another number of stages alone.
    """
    num_streams = workload.num_streams if objective == "throughput" else 1
    memory = _memory(cluster, workload, num_streams)
    choice = choose_peers(cluster, memory)
    if not _fits(cluster, choice, memory, num_stages):
        num_streams = _most_streams(cluster, workload, num_streams - 1, num_stages)
        memory = _memory(cluster, workload, max(1, num_streams))
        choice = choose_peers(cluster, memory)
    if not num_streams:
        return _nothing_fits(choice, memory)
    space = SearchSpace(choice.peers, memory, num_stages)
    if objective == "latency":
        plan = _least_latency(cluster, workload, space)
    else:
        plan = _most_throughput(cluster, workload, num_streams, space)
    return Found(plan, predict(cluster, plan, workload), choice.left_out)


def _memory(cluster: Cluster, workload: Workload, num_streams: int) -> StageMemory:
    return StageMemory.of(cluster.model, max(workload.min_blocks, num_streams * workload.blocks_per_stream))


def _most_streams(cluster: Cluster, workload: Workload, most: int, num_stages: int | None) -> int:
    """The most streams, up to `most`, whose KV a plan has room for; 0 where there is no plan at all."""

    def is_too_many(num_streams: int) -> bool:
        memory = _memory(cluster, workload, num_streams)
        return not _fits(cluster, choose_peers(cluster, memory), memory, num_stages)

    return bisect_left(range(1, most + 1), True, key=is_too_many)


def _fits(cluster: Cluster, choice: PeerChoice, memory: StageMemory, num_stages: int | None) -> bool:
    if num_stages is None or not fits(choice.peers, memory):
        return fits(choice.peers, memory)
    costs = decode_costs(cluster, 1)
    space = SearchSpace(choice.peers, memory, num_stages)
    return space.cheapest(costs, costs, space.limits_ns(costs)[-1]) is not None


def _nothing_fits(choice: PeerChoice, memory: StageMemory) -> NothingFits:
    lacking = () if fits(choice.peers, memory) else shortages(choice.peers, memory)
    return NothingFits(memory.min_blocks, lacking, choice.left_out)


def _least_latency(cluster: Cluster, workload: Workload, space: SearchSpace) -> Plan:
    """Of the plans with the least TPOT, the one with the least TTFT."""
    single, chunk = decode_costs(cluster, 1), prefill_costs(cluster, workload)
    limits_ns = space.limits_ns(chunk)
    fastest = space.cheapest(single, chunk, limits_ns[-1], then=chunk)
    assert fastest, "a plan fits in memory, and no bottleneck is above the last limit"
    least_ns = single.round_ns(fastest)

    def as_fast(limit_ns: int) -> Candidate[Plan] | None:
        plan = space.cheapest(single, chunk, limit_ns, then=chunk)
        return _candidate(plan, chunk) if plan and single.round_ns(plan) == least_ns else None

    best = least(limits_ns, as_fast, partial(first_token_ns, workload), inf)
    assert best, "the fastest plan is a candidate"
    return best.plan


def _most_throughput(cluster: Cluster, workload: Workload, num_streams: int, space: SearchSpace) -> Plan:
    """The plan with the shortest cycle in which every stream gets a token, in any number of micro-batches."""
    best: Candidate[Plan] | None = None
    best_ns = inf
    for count, num_rows in divisions_of(num_streams, workload.max_in_flight):
        costs = serving_costs(cluster, workload, num_rows)

        def shortest_round(limit_ns: int, costs: StepCosts = costs) -> Candidate[Plan] | None:
            plan = space.cheapest(costs, costs, limit_ns)
            return _candidate(plan, costs) if plan else None

        found = least(space.limits_ns(costs), shortest_round, partial(cycle_ns, count), best_ns)
        if found:
            best, best_ns = found, cycle_ns(count, found.round_ns, found.bottleneck_ns)
    assert best, "a plan fits in memory, and its cycle is finite"
    return best.plan


def _candidate(plan: Plan, costs: StepCosts) -> Candidate[Plan]:
    return Candidate(plan, costs.round_ns(plan), costs.bottleneck_ns(plan))
