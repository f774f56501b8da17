"""`distllm cluster plan` as a user types it."""

import json
from pathlib import Path

import pytest

from distllm.engine.pipeline.placement.measurements import PeerId
from distllm.engine.pipeline.placement.plan import Plan, Stage
from distllm.engine.pipeline.placement.plan_record import write_record
from distllm.server import cli
from tests.engine.pipeline.placement.clusters import cluster, peer
from tests.engine.pipeline.placement.test_plan_record import record_of

SLOW_AND_FAST = cluster(4, peer("a", layer_s=0.001), peer("b", layer_s=0.009))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["cluster", "plan", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_plan_is_told_with_what_bounds_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_record(record_of(SLOW_AND_FAST, Plan((Stage(PeerId("a"), 0, 4),))), tmp_path)
    status, out, err = run(capsys, "--state", str(tmp_path))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["m, as of 2026-11-26 00:00:00 UTC", "1 stage for throughput"]
    assert "  bound by   compute of a" in lines
    assert any(line.startswith("  without a: TTFT +") for line in lines)
    assert "  not placed c: no memory" in lines
    assert lines[-1] == "this plan is served"


def test_another_plan_that_serves_is_told_beside_the_best(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    serving = Plan((Stage(PeerId("b"), 0, 1), Stage(PeerId("a"), 1, 4)))
    write_record(record_of(SLOW_AND_FAST, serving), tmp_path)
    *_, head, figures = run(capsys, "--state", str(tmp_path))[1].splitlines()
    assert head == "served is another plan: b [0, 1) -> a [1, 4)"
    assert figures.startswith("  TTFT ")


def test_what_if_is_asked_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_record(record_of(SLOW_AND_FAST), tmp_path)
    _, out, _ = run(capsys, "--state", str(tmp_path), "--without", "b", "--another", "a")
    assert "  without b: TTFT +" in out
    assert "  with a-like: TTFT " in out
    assert out.endswith("nothing is served\n")
    status, _, err = run(capsys, "--state", str(tmp_path), "--without", "z")
    assert status == 2
    assert err == "distllm: 'z' is no peer that is here and measured; these are: a, b\n"


def test_programs_get_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_record(record_of(SLOW_AND_FAST), tmp_path)
    values = json.loads(run(capsys, "--state", str(tmp_path), "--json")[1])
    assert values["fits"]
    assert values["model"] == "m"
    assert values["serving"] is None
    assert [stage["peer_id"] for stage in values["result"]["plan"]["stages"]] == ["a"]
    assert [it["change"] for it in values["what_if"]] == ["without a"]


def test_a_model_that_does_not_fit_is_a_failure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_record(record_of(cluster(4, peer("a", free_bytes=10))), tmp_path)
    status, out, _ = run(capsys, "--state", str(tmp_path))
    assert status == 1
    assert "no peer can be used" in out


def test_a_folder_without_a_plan_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = run(capsys, "--state", str(tmp_path))
    assert (status, out) == (1, "")
    assert err.startswith(f"distllm: {tmp_path} holds no placement.json")
