"""What a plan would give: times, tokens a second, room for KV, and what limits it."""

from collections.abc import Iterator
from dataclasses import dataclass

from distllm.engine.pipeline.placement.costs import (
    StepCosts,
    decode_costs,
    first_token_ns,
    prefill_costs,
    serving_costs,
)
from distllm.engine.pipeline.placement.measurements import Cluster, PeerId
from distllm.engine.pipeline.placement.plan import Plan, Stage, Workload
from distllm.engine.pipeline.placement.stage_memory import StageMemory
from distllm.engine.pipeline.wire.codec_names import PLAIN, CodecName


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """`decode_s` is a step of one row, `prefill_s` one of a chunk, with the head on the last stage.

    `quantization` names how its layers are quantized, "" where they are as they are stored.
    """

    peer_id: PeerId
    begin: int
    end: int
    decode_s: float
    prefill_s: float
    weight_bytes: int
    num_blocks: int
    quantization: str


@dataclass(frozen=True, slots=True)
class HopPrediction:
    """`decode_s` takes the activations of one row from `source` to `target`, by the coordinator if relayed.

    It has the time to encode and decode them where they go in a `codec`.
    """

    source: PeerId
    target: PeerId
    decode_s: float
    is_relayed: bool
    codec: CodecName = PLAIN


@dataclass(frozen=True, slots=True)
class Prediction:
    """`tokens_per_s` is of `num_running` streams, all that KV has room for, in `num_micro_batches` at once, while
    as many prompts are taken in as answers end.

    `tpot_s` and `ttft_s` are of a single stream. `binding_limit` is what bounds `tokens_per_s`, `latency_limit` the
    largest part of `tpot_s`. A plan that does not fit has `num_running` 0 and no tokens a second.
    """

    stages: tuple[StagePrediction, ...]
    hops: tuple[HopPrediction, ...]
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    num_running: int
    num_micro_batches: int
    num_blocks: int
    binding_limit: str
    latency_limit: str


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """Serving `num_streams` in `count` micro-batches: every stream gets one token in each `cycle_ns`."""

    count: int
    num_rows: int
    cycle_ns: int


def predict(cluster: Cluster, plan: Plan, workload: Workload) -> Prediction:
    """Raises ValueError for a plan of other layers than the model's, or of peers that cannot be reached."""
    single, chunk = decode_costs(cluster, 1), prefill_costs(cluster, workload)
    _check(cluster, plan, single)
    stages = tuple(_stage_prediction(cluster, stage, single, chunk) for stage in plan.stages)
    num_blocks = min(stage.num_blocks for stage in stages)
    num_running = min(workload.num_streams, num_blocks // workload.blocks_per_stream)
    batches = micro_batches(cluster, plan, workload, max(1, num_running))
    if num_running < workload.num_streams:
        fullest = min(stages, key=lambda stage: stage.num_blocks)
        binding_limit = f"memory of {fullest.peer_id}"
    else:
        binding_limit = _throughput_limit(plan, serving_costs(cluster, workload, batches.num_rows), batches)
    return Prediction(
        stages=stages,
        hops=tuple(_hop_predictions(plan, single)),
        ttft_s=first_token_ns(workload, chunk.round_ns(plan), chunk.bottleneck_ns(plan)) / 1e9,
        tpot_s=single.round_ns(plan) / 1e9,
        tokens_per_s=num_running * 1e9 / batches.cycle_ns,
        num_running=num_running,
        num_micro_batches=batches.count,
        num_blocks=num_blocks,
        binding_limit=binding_limit,
        latency_limit=_largest_part(plan, single),
    )


def micro_batches(cluster: Cluster, plan: Plan, workload: Workload, num_streams: int) -> MicroBatches:
    """The division of `num_streams` with the shortest cycle, of those the one with the fewest micro-batches."""
    divisions = (
        MicroBatches(count, num_rows, cycle_ns(count, costs.round_ns(plan), costs.bottleneck_ns(plan)))
        for count, num_rows in divisions_of(num_streams, workload.max_in_flight)
        for costs in (serving_costs(cluster, workload, num_rows),)
    )
    return min(divisions, key=lambda batches: (batches.cycle_ns, batches.count))


def divisions_of(num_streams: int, max_in_flight: int) -> Iterator[tuple[int, int]]:
    """(number of micro-batches, rows of the largest), without those that only add micro-batches."""
    num_rows_before = None
    for count in range(1, min(num_streams, max_in_flight) + 1):
        num_rows = -(-num_streams // count)
        if num_rows != num_rows_before:
            yield count, num_rows
        num_rows_before = num_rows


def cycle_ns(num_micro_batches: int, round_ns: int, bottleneck_ns: int) -> int:
    """A micro-batch begins again when it is back, and when the bottleneck has served the others."""
    return max(round_ns, num_micro_batches * bottleneck_ns)


def _check(cluster: Cluster, plan: Plan, costs: StepCosts) -> None:
    if plan.num_layers != cluster.model.num_layers:
        raise ValueError(f"the plan has {plan.num_layers} layers, and the model {cluster.model.num_layers}")
    for stage in plan.stages:
        if stage.peer_id not in costs.layer_ns:
            raise ValueError(f"the coordinator and peer {stage.peer_id} do not reach each other")


def _stage_prediction(cluster: Cluster, stage: Stage, single: StepCosts, chunk: StepCosts) -> StagePrediction:
    memory, peer = StageMemory.of(cluster, min_blocks=0), cluster.peer(stage.peer_id)
    return StagePrediction(
        peer_id=stage.peer_id,
        begin=stage.begin,
        end=stage.end,
        decode_s=single.stage_ns(stage) / 1e9,
        prefill_s=chunk.stage_ns(stage) / 1e9,
        weight_bytes=memory.weight_bytes(peer, stage.begin, stage.end),
        num_blocks=memory.num_blocks(peer, stage.begin, stage.end),
        quantization=(peer.model or cluster.model).quantization_of(stage.begin, stage.end),
    )


def _hop_predictions(plan: Plan, costs: StepCosts) -> Iterator[HopPrediction]:
    for source, target in plan.edges:
        cost = costs.edges[source, target]
        yield HopPrediction(source, target, cost.total_ns / 1e9, cost.is_relayed, cost.codec)


def _throughput_limit(plan: Plan, costs: StepCosts, batches: MicroBatches) -> str:
    """What the bottleneck is, or the largest part of the round where that takes longer."""
    bottleneck_ns = costs.bottleneck_ns(plan)
    if batches.count * bottleneck_ns < costs.round_ns(plan):
        return _largest_part(plan, costs)
    for stage in plan.stages:
        if costs.stage_ns(stage) == bottleneck_ns:
            return f"compute of {stage.peer_id}"
    source, target = max(plan.edges, key=lambda edge: costs.edges[edge].transfer_ns)
    return f"goodput of {source}->{target}"


def _largest_part(plan: Plan, costs: StepCosts) -> str:
    parts = {f"compute of {stage.peer_id}": costs.stage_ns(stage) for stage in plan.stages}
    for source, target in plan.edges:
        cost = costs.edges[source, target]
        parts[f"delay of {source}->{target}"] = cost.delay_ns
        parts[f"goodput of {source}->{target}"] = cost.transfer_ns
    return max(parts, key=lambda part: parts[part])
