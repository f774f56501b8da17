"""The cheapest plan within a limit is what trying every plan finds."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from distllm.engine.pipeline.placement.costs import decode_costs, prefill_costs
from distllm.engine.pipeline.placement.measurements import Cluster
from distllm.engine.pipeline.placement.plan import Plan, Workload
from distllm.engine.pipeline.placement.search_space import SearchSpace
from distllm.engine.pipeline.placement.stage_memory import StageMemory
from tests.engine.pipeline.placement.clusters import every_plan, small_clusters, small_workloads


@settings(max_examples=200, deadline=None)
@given(cluster=small_clusters(), workload=small_workloads, data=st.data())
def test_no_plan_within_the_limit_is_cheaper(cluster: Cluster, workload: Workload, data: st.DataObject) -> None:
    single, chunk = decode_costs(cluster, 1), prefill_costs(cluster, workload)
    peers = [peer for peer in cluster.peers if peer.peer_id in single.layer_ns]
    assume(peers)
    reached = replace(cluster, peers=tuple(peers))
    plans = list(every_plan(reached, workload.min_blocks))
    assume(plans)
    space = SearchSpace(peers, StageMemory.of(cluster, workload.min_blocks))
    bottlenecks = sorted({chunk.bottleneck_ns(plan) for plan in plans})
    assert set(bottlenecks) <= set(space.limits_ns(chunk))

    def costs(plan: Plan) -> tuple[int, int]:
        return single.round_ns(plan), chunk.round_ns(plan)

    limit_ns = data.draw(st.sampled_from(bottlenecks)) - data.draw(st.integers(0, 1))
    within = [plan for plan in plans if chunk.bottleneck_ns(plan) <= limit_ns]
    cheapest = space.cheapest(single, chunk, limit_ns, then=chunk)
    if not within:
        assert cheapest is None
    else:
        assert cheapest in within
        assert costs(cheapest) == min(map(costs, within))
