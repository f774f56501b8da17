"""`distllm cluster plan`: the plan that a coordinator's record leads to, beside the one that serves."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from distllm.engine.duration import duration
from distllm.engine.pipeline.placement.plan import Plan
from distllm.engine.pipeline.placement.plan_record import NoPlanRecord, PlanRecord, read_record
from distllm.engine.pipeline.placement.report import report, report_values
from distllm.engine.pipeline.placement.search import Found, SearchResult
from distllm.engine.pipeline.placement.what_if import WhatIf
from distllm.engine.pipeline.security.state_dir import default_cluster_dir
from distllm.server.config import InvalidSettings


def print_cluster_plan(state: Path | None, without: Sequence[str], another: Sequence[str], *, as_json: bool) -> int:
    """Exit status: 0 if the model fits on the peers. Raises InvalidSettings for a peer that is not there."""
    directory = default_cluster_dir() if state is None else state.expanduser()
    try:
        record = read_record(directory)
    except NoPlanRecord as error:
        sys.stderr.write(f"distllm: {error}\n")
        return 1
    best = record.best()
    what_ifs = _what_ifs(record, best, without, another)
    if as_json:
        values = report_values(best, record.workload, record.objective, what_ifs)
        lines = [json.dumps({**msgspec.to_builtins(_served(record)), **values}, indent=2)]
    else:
        lines = [*_head(record), *report(best, record.workload, record.objective, what_ifs)]
        lines += [f"  not placed {peer_id}: {reason}" for peer_id, reason in record.unmeasured.items()]
        lines += _beside(record, best)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if isinstance(best, Found) else 1


def _what_ifs(
    record: PlanRecord, best: SearchResult, without: Sequence[str], another: Sequence[str]
) -> list[WhatIf]:
    """Of every loss of a stage, and of what was asked for."""
    known = {peer.peer_id: peer for peer in record.cluster.peers}
    for name in (*without, *another):
        if name not in known:
            raise InvalidSettings(f"{name!r} is no peer that is here and measured; these are: {', '.join(known)}")
    losses = list(record.losses(best))
    told = {what_if.change for what_if in losses}
    asked = [record.loss_of(peer_id, best) for peer_id in known if peer_id in without]
    losses += [what_if for what_if in asked if what_if.change not in told]
    return losses + [record.another(peer_id, best) for peer_id in known if peer_id in another]


def _head(record: PlanRecord) -> Iterator[str]:
    yield f"{record.model}, as of {record.written_at:%Y-%m-%d %H:%M:%S} UTC"


def _beside(record: PlanRecord, best: SearchResult) -> Iterator[str]:
    """What serves, where that is another plan."""
    if record.serving is None:
        yield "nothing is served"
    elif isinstance(best, Found) and record.serving == best.plan:
        yield "this plan is served"
    else:
        yield f"served is another plan: {_chain(record.serving)}"
        if record.served is not None:
            yield (
                f"  TTFT {duration(record.served.ttft_s)}, TPOT {duration(record.served.tpot_s)}, "
                f"{record.served.tokens_per_s:,.1f} tokens/s"
            )


def _chain(plan: Plan) -> str:
    return " -> ".join(f"{stage.peer_id} [{stage.begin}, {stage.end})" for stage in plan.stages)


def _served(record: PlanRecord) -> dict[str, object]:
    return {
        "written_at": record.written_at,
        "model": record.model,
        "serving": record.serving,
        "served": record.served,
        "unmeasured": record.unmeasured,
    }
