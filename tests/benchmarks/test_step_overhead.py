"""Figures of a step from the counters of /metrics."""

from types import SimpleNamespace
from typing import cast

import pytest

from benchmarks.step_overhead import Counters, StepCost, step_cost
from distllm.scheduler.latest import Latest
from distllm.scheduler.stats import EngineStats
from distllm.server.metrics import Metrics
from distllm.server.ports import Engine


def exposition(stats: EngineStats) -> str:
    engine = SimpleNamespace(stats=stats, num_restarts=0, loading=None, state="ready", cluster=Latest(None))
    return Metrics(cast(Engine, engine), "tiny").render().decode()


def test_counters_are_read_from_what_the_server_exposes() -> None:
    stats = EngineStats(steps_total=4, schedule_s_total=0.5, execute_s_total=2.0, publish_s_total=0.25)
    assert Counters.parse(exposition(stats)) == Counters(4.0, 0.5, 2.0, 0.25)


def test_a_missing_counter_is_an_error() -> None:
    with pytest.raises(KeyError, match="distllm_engine_steps_total"):
        Counters.parse("")


def test_growth_is_divided_by_the_steps() -> None:
    grown = Counters(30.0, 0.5, 3.0, 0.25).since(Counters(10.0, 0.25, 1.0, 0.0))
    cost = step_cost(grown, detokenize_ms=0.5)
    assert cost == StepCost(execute_ms=100.0, schedule_ms=12.5, publish_ms=12.5, detokenize_ms=0.5)
    assert cost.scheduler_share == pytest.approx(13.0 / 125.0)
