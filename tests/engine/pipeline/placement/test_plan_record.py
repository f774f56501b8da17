"""A record is read as it was written, and leads to the plan and the what-ifs that its coordinator would have."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from distllm.engine.pipeline.placement.measurements import Cluster, PeerId
from distllm.engine.pipeline.placement.plan import Plan, Stage, Workload
from distllm.engine.pipeline.placement.plan_record import (
    NoPlanRecord,
    PlanRecord,
    predict_serving,
    read_record,
    write_record,
)
from distllm.engine.pipeline.placement.prediction import predict
from distllm.engine.pipeline.placement.search import Found, NothingFits
from tests.engine.pipeline.placement.clusters import cluster, peer, small_clusters

A, B = PeerId("a"), PeerId("b")
WORKLOAD = Workload(prompt_tokens=8, output_tokens=8, num_streams=2)


def record_of(cluster: Cluster, serving: Plan | None = None) -> PlanRecord:
    return PlanRecord(
        written_at=datetime(2026, 11, 26, tzinfo=UTC),
        model="m",
        cluster=cluster,
        workload=WORKLOAD,
        objective="throughput",
        num_stages=None,
        serving=serving,
        served=predict_serving(cluster, serving, WORKLOAD),
        unmeasured={"c": "no memory"},
    )


@settings(deadline=None)  # a disk may be slow
@given(small_clusters())
def test_a_snapshot_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> None:
    directory = tmp_path_factory.mktemp("state")
    record = record_of(cluster)
    write_record(record, directory)
    assert read_record(directory) == record


def test_what_serves_is_kept_with_what_it_was_predicted_to_give(tmp_path: Path) -> None:
    serving = Plan((Stage(A, 0, 4),))
    record = record_of(cluster(4, peer("a"), peer("b")), serving)
    write_record(record, tmp_path)
    again = read_record(tmp_path)
    assert again.served == predict(again.cluster, serving, WORKLOAD)


def test_what_serves_without_measurements_has_no_prediction() -> None:
    assert predict_serving(cluster(4, peer("a")), Plan((Stage(B, 0, 4),)), WORKLOAD) is None
    unreached = Cluster(cluster(4, peer("a")).model, (peer("a"),), ())
    assert predict_serving(unreached, Plan((Stage(A, 0, 4),)), WORKLOAD) is None


def test_every_stage_of_the_best_plan_has_a_loss() -> None:
    record = record_of(cluster(4, peer("a"), peer("b"), delay_s=0.00001))
    best = record.best()
    assert isinstance(best, Found)
    assert {it.change for it in record.losses(best)} == {f"without {it.peer_id}" for it in best.plan.stages}


def test_nothing_that_fits_has_no_losses() -> None:
    record = record_of(cluster(4, peer("a", free_bytes=10)))
    best = record.best()
    assert isinstance(best, NothingFits)
    assert record.losses(best) == ()


def test_the_like_of_a_peer_is_as_fast_and_as_far() -> None:
    """Two such peers, each with a copy of the other's links, are what is there already."""
    both = cluster(4, peer("a"), peer("b"))
    one = record_of(cluster(4, peer("a")))
    with_another = one.another(A, one.best()).after
    assert isinstance(with_another, Found)
    of_both = record_of(both).best()
    assert isinstance(of_both, Found)
    assert with_another.prediction.tokens_per_s == of_both.prediction.tokens_per_s
    assert {stage.peer_id for stage in with_another.plan.stages} <= {A, PeerId("a-like")}


def test_a_given_number_of_stages_holds_for_losses_too() -> None:
    record = replace(record_of(cluster(4, peer("a"), peer("b"), peer("c"))), num_stages=2)
    best = record.best()
    for loss in record.losses(best):
        assert isinstance(loss.after, Found)
        assert len(loss.after.plan.stages) == 2


def test_a_snapshot_that_is_missing_or_damaged_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NoPlanRecord, match="no coordinator has run with this --state"):
        read_record(tmp_path)
    (tmp_path / "placement.json").write_text('{"model": 1}')
    with pytest.raises(NoPlanRecord, match=r"placement\.json cannot be read"):
        read_record(tmp_path)
