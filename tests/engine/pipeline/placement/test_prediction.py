"""Predictions by hand, and against a simulation of steps that queue for stages and edges."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from distllm.engine.pipeline.placement.costs import StepCosts, decode_costs, first_token_ns, prefill_costs
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Cluster, EdgeCodec, PeerId, RowTimes
from distllm.engine.pipeline.placement.plan import Plan, Stage, Workload
from distllm.engine.pipeline.placement.prediction import cycle_ns, predict
from tests.engine.pipeline.placement.clusters import (
    cluster,
    every_plan,
    full_mesh,
    model,
    peer,
    small_clusters,
    small_workloads,
)

A, B = PeerId("a"), PeerId("b")
TWO_STAGES = Plan((Stage(A, 0, 3), Stage(B, 3, 4)))
WORKLOAD = Workload(prompt_tokens=48, output_tokens=16, chunk_tokens=16, num_streams=4, max_in_flight=4)


def two_peers(delay_s: float = 0.001) -> Cluster:
    """Layers of 1 ms on a and of 2 ms on b, a head of 2 ms; 16 bytes a token cross at 1 MB/s."""
    return cluster(4, peer("a", 0.001), peer("b", 0.002), delay_s=delay_s)


def test_tpot_is_every_stage_the_head_and_a_hop_more_than_stages() -> None:
    prediction = predict(two_peers(), TWO_STAGES, WORKLOAD)
    activations_s, token_s = 16 / 1e6, 8 / 1e6
    assert prediction.tpot_s == pytest.approx(3 * 0.001 + 0.002 + 0.002 + 3 * 0.001 + activations_s + 2 * token_s)
    assert [stage.decode_s for stage in prediction.stages] == [0.003, 0.004]
    assert [(hop.source, hop.target) for hop in prediction.hops] == [(COORDINATOR, A), (A, B), (B, COORDINATOR)]


def test_ttft_fills_the_pipeline_and_then_waits_for_its_bottleneck() -> None:
    """Chunks of 16: 16 x 3 layers x 0.1 ms on a, 16 x 0.2 ms and the head on b."""
    prediction = predict(two_peers(), TWO_STAGES, WORKLOAD)
    fill_s = 0.0048 + 0.0032 + 0.002 + 3 * 0.001 + 16 * 16 / 1e6 + 16 * 8 / 1e6 + 8 / 1e6
    assert prediction.ttft_s == pytest.approx(fill_s + 2 * 0.0052)


def test_throughput_takes_the_best_number_of_micro_batches() -> None:
    """In two micro-batches of two rows, b's stage of (2 + 2) ms x 9/8 is busy all the time; four take 18.4 ms.

    For each of the two rows it computes 3 tokens of prompts too, of 0.2 ms.
    """
    prediction = predict(two_peers(delay_s=0), TWO_STAGES, WORKLOAD)
    assert prediction.num_micro_batches == 2
    assert prediction.tokens_per_s == pytest.approx(4 / (2 * (0.004 * 9 / 8 + 6 * 0.0002)))
    assert prediction.binding_limit == "compute of b"


def test_far_peers_are_limited_by_delay() -> None:
    prediction = predict(two_peers(delay_s=0.5), TWO_STAGES, WORKLOAD)
    assert prediction.binding_limit.startswith("delay of ")
    assert prediction.latency_limit.startswith("delay of ")


def test_a_thin_link_limits_by_its_goodput() -> None:
    peers = (peer("a"), peer("b"))
    links = full_mesh(peers, delay_s=0, bytes_per_s=1000)
    prediction = predict(Cluster(model(4), peers, links), TWO_STAGES, WORKLOAD)
    assert prediction.binding_limit == "goodput of a->b"


def test_blocks_are_those_of_the_stage_with_least_room() -> None:
    """On a 10,000 - 350 bytes for 3 layers, on b 1,000 - 150 for one, 16 bytes a layer and block."""
    peers = cluster(4, peer("a"), peer("b", free_bytes=1000))
    prediction = predict(peers, TWO_STAGES, WORKLOAD)
    assert [stage.num_blocks for stage in prediction.stages] == [9650 // 48, 850 // 16]
    assert prediction.num_blocks == 850 // 16


def test_streams_that_kv_has_no_room_for_do_not_run() -> None:
    peers = cluster(4, peer("a"), peer("b", free_bytes=150 + 16 * 4 * 2))
    prediction = predict(peers, TWO_STAGES, WORKLOAD)
    assert (prediction.num_running, prediction.binding_limit) == (2, "memory of b")


def test_a_plan_that_does_not_fit_gives_nothing() -> None:
    prediction = predict(cluster(4, peer("a"), peer("b", free_bytes=10)), TWO_STAGES, WORKLOAD)
    assert (prediction.num_blocks, prediction.num_running, prediction.tokens_per_s) == (0, 0, 0)


def test_the_coordinator_relays_where_there_is_no_link() -> None:
    peers = (peer("a"), peer("b"))
    links = tuple(link for link in full_mesh(peers) if (link.source, link.target) != (A, B))
    prediction = predict(Cluster(model(4), peers, links), TWO_STAGES, WORKLOAD)
    assert [hop.is_relayed for hop in prediction.hops] == [False, True, False]
    assert prediction.hops[1].decode_s == pytest.approx(2 * (0.001 + 16 / 1e6))


def test_plans_of_other_models_and_of_unknown_peers_are_refused() -> None:
    with pytest.raises(ValueError, match="the plan has 3 layers, and the model 4"):
        predict(two_peers(), Plan((Stage(A, 0, 3),)), WORKLOAD)
    with pytest.raises(ValueError, match="the coordinator and peer x do not reach each other"):
        predict(two_peers(), Plan((Stage(PeerId("x"), 0, 4),)), WORKLOAD)


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Stage(A, 1, 4),),
        (Stage(A, 0, 0),),
        (Stage(A, 0, 2), Stage(B, 3, 4)),
        (Stage(A, 0, 2), Stage(A, 2, 4)),
    ],
)
def test_a_plan_has_every_layer_once_on_different_peers(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(ValueError, match=r"begins|every stage|one stage"):
        Plan(stages)


def finish_times(costs: StepCosts, plan: Plan, num_steps: int, max_in_flight: int) -> list[int]:
    """When each of many equal steps is back: each waits for its place in flight, then for every stage and edge."""
    free: dict[object, int] = {}
    finished: list[int] = []
    edges = list(plan.edges)
    for number in range(num_steps):
        now = finished[number - max_in_flight] if number >= max_in_flight else 0
        for index, edge in enumerate(edges):
            now = free[edge] = max(now, free.get(edge, 0)) + costs.edges[edge].transfer_ns
            now += costs.edges[edge].delay_ns
            if index < len(plan.stages):
                stage = plan.stages[index]
                now = free[stage] = max(now, free.get(stage, 0)) + costs.stage_ns(stage)
        finished.append(now)
    return finished


@settings(max_examples=100, deadline=None)
@given(small_clusters(), small_workloads, st.data())
def test_ttft_and_cycles_are_those_of_a_simulation(
    cluster: Cluster, workload: Workload, data: st.DataObject
) -> None:
    costs = prefill_costs(cluster, workload)
    plans = [
        plan
        for plan in every_plan(cluster, min_blocks=0)
        if all(stage.peer_id in costs.layer_ns for stage in plan.stages)
    ]
    assume(plans)
    plan = data.draw(st.sampled_from(plans))
    round_ns, bottleneck_ns = costs.round_ns(plan), costs.bottleneck_ns(plan)
    simulated = finish_times(costs, plan, workload.num_chunks, workload.max_in_flight)
    assert first_token_ns(workload, round_ns, bottleneck_ns) == simulated[-1]

    costs = decode_costs(cluster, 2)
    num_rounds, count = 50, workload.max_in_flight
    finished = finish_times(costs, plan, num_rounds * count, count)
    steady_ns = (finished[-1] - finished[-1 - 40 * count]) / 40
    expected_ns = cycle_ns(count, costs.round_ns(plan), costs.bottleneck_ns(plan))
    assert steady_ns == pytest.approx(expected_ns, rel=0.05)


def test_times_between_measured_rows_lie_on_the_line() -> None:
    times = RowTimes((2, 4, 8), (1.0, 3.0, 4.0))
    assert [times.at(rows) for rows in (1, 2, 3, 4, 6, 8, 12)] == [1.0, 1.0, 2.0, 3.0, 3.5, 4.0, 5.0]


def test_times_that_fall_are_level_beyond_the_last() -> None:
    assert RowTimes((1, 2), (2.0, 1.0)).at(10) == 1.0
    assert RowTimes((4,), (2.0,)).at(10) == 2.0


def test_a_codec_makes_a_hop_shorter_by_what_it_saves_and_longer_by_what_it_takes() -> None:
    """16 bytes a token at 1 MB/s as they are; 4 bytes and 5 us in the codec."""
    plain = cluster(2, peer("a"), peer("b"))
    coded = replace(plain, codecs=(EdgeCodec(A, B, "fp8", 4, 5e-6),))
    plan = Plan((Stage(A, 0, 1), Stage(B, 1, 2)))
    workload = Workload(prompt_tokens=1, output_tokens=1, num_streams=1)
    before, after = (predict(it, plan, workload).hops[1] for it in (plain, coded))
    assert before.decode_s == pytest.approx(0.001 + 16e-6)
    assert after.decode_s == pytest.approx(0.001 + 4e-6 + 5e-6)
    assert (before.codec, after.codec) == ("none", "fp8")
