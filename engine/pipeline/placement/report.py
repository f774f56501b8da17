"""A search's result for people, as `distllm cluster plan` prints it, and for a dashboard, as JSON's values."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from distllm.engine.byte_size import byte_size
from distllm.engine.duration import duration
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.pipeline.placement.measurements import COORDINATOR
from distllm.engine.pipeline.placement.plan import Objective, Workload
from distllm.engine.pipeline.placement.prediction import HopPrediction, Prediction, StagePrediction
from distllm.engine.pipeline.placement.search import Found, NothingFits, SearchResult
from distllm.engine.pipeline.placement.what_if import Difference, WhatIf
from distllm.engine.pipeline.wire.codec_names import PLAIN


def report(
    result: SearchResult, workload: Workload, objective: Objective, what_ifs: Sequence[WhatIf] = ()
) -> list[str]:
    """The plan in lines: its chain, what it would give, what was left out and what would change."""
    match result:
        case Found(plan, prediction, left_out):
            num_stages = len(plan.stages)
            head = f"{num_stages} {'stage' if num_stages == 1 else 'stages'} for {objective}"
            lines = [head, *_chain(prediction), *_figures(prediction, workload)]
        case NothingFits(_, _, left_out):
            lines = list(_shortage_lines(result))
    lines += [f"  left out   {left.peer_id}: {left.reason}" for left in left_out]
    return [*lines, *(_what_if_line(what_if) for what_if in what_ifs)]


def report_values(
    result: SearchResult, workload: Workload, objective: Objective, what_ifs: Sequence[WhatIf] = ()
) -> dict[str, Any]:
    """The same for JSON, in seconds and bytes; `fits` tells the two shapes of a result apart."""
    values: dict[str, Any] = msgspec.to_builtins(
        {"objective": objective, "workload": workload, **_result_fields(result)}
    )
    values["what_if"] = [
        msgspec.to_builtins(
            {"change": what_if.change, "difference": what_if.difference, **_result_fields(what_if.after)}
        )
        for what_if in what_ifs
    ]
    return values


def _result_fields(result: SearchResult) -> dict[str, Any]:
    return {"fits": isinstance(result, Found), "result": result}


def _chain(prediction: Prediction) -> Iterator[str]:
    """Stages and hops in turn, from the coordinator and back."""
    width = max(len(COORDINATOR), *(len(stage.peer_id) for stage in prediction.stages))
    yield f"  {COORDINATOR}"
    for hop, stage in zip_longest(prediction.hops, prediction.stages):
        yield f"    | {_hop(hop)}"
        yield f"  {COORDINATOR}" if stage is None else f"  {stage.peer_id:<{width}}  {_stage(stage)}"


def _hop(hop: HopPrediction) -> str:
    way = ", relayed by the coordinator" if hop.is_relayed else ""
    return f"{duration(hop.decode_s)}{way}{'' if hop.codec == PLAIN else f', in {hop.codec}'}"


def _stage(stage: StagePrediction) -> str:
    layers = f"layer {stage.begin}" if stage.end == stage.begin + 1 else f"layers {stage.begin}-{stage.end - 1}"
    weights = f"{stage.quantization} weights" if stage.quantization else "weights"
    return (
        f"{layers}: {duration(stage.decode_s)} a token, {duration(stage.prefill_s)} a chunk, "
        f"{byte_size(stage.weight_bytes)} of {weights}, {stage.num_blocks:,} blocks"
    )


def _figures(prediction: Prediction, workload: Workload) -> list[str]:
    tokens = f"{workload.prompt_tokens:,} tokens in {_count(workload.num_chunks, 'chunk')}"
    streams = f"{_count(prediction.num_running, 'stream')} of {workload.num_streams}"
    batches = _count(prediction.num_micro_batches, "micro-batch", "micro-batches")
    return [
        f"  TTFT       {duration(prediction.ttft_s)} for {tokens}",
        f"  TPOT       {duration(prediction.tpot_s)} for one stream, most of it {prediction.latency_limit}",
        f"  throughput {prediction.tokens_per_s:,.1f} tokens/s with {streams} in {batches}",
        f"  bound by   {prediction.binding_limit}",
        f"  KV cache   {prediction.num_blocks:,} blocks of {BLOCK_SIZE} tokens",
    ]


def _shortage_lines(result: NothingFits) -> Iterator[str]:
    blocks = _count(result.min_blocks, "block")
    if not result.shortages:
        yield "no plan: no peer can be used"
        return
    yield f"does not fit with {blocks} of KV; more memory on any one of these peers would do:"
    for shortage in result.shortages:
        yield (
            f"  {shortage.peer_id}: {byte_size(shortage.short_bytes)} more than the "
            f"{byte_size(shortage.free_bytes)} free, for layers {shortage.begin}-{shortage.end - 1}"
        )


def _what_if_line(what_if: WhatIf) -> str:
    if isinstance(what_if.after, NothingFits):
        return f"  {what_if.change}: does not fit"
    if what_if.difference is None:
        return f"  {what_if.change}: fits"
    return f"  {what_if.change}: {_changes(what_if.difference)}"


def _changes(difference: Difference) -> str:
    return (
        f"TTFT {_signed(difference.ttft_s)}, TPOT {_signed(difference.tpot_s)}, "
        f"{difference.tokens_per_s:+,.1f} tokens/s, {difference.num_blocks:+,} blocks"
    )


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{duration(abs(seconds))}"


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
