"""Measuring compute with a clock of our own."""

from collections.abc import Callable

import pytest

from distllm.engine.pipeline.placement.measuring import MEASURED_ROWS, measure_layers


class Device:
    """A layer takes 10 s and a second a row, the head half of that; what comes first takes longer."""

    def __init__(self, slow_runs: int = 0) -> None:
        self.now = 0.0
        self.runs: list[tuple[str, int]] = []
        self._slow_runs = slow_runs

    def runner(self, name: str, factor: float) -> Callable[[int], None]:
        def run(num_rows: int) -> None:
            self.runs.append((name, num_rows))
            self.now += factor * (10 + num_rows) * (100 if len(self.runs) <= self._slow_runs else 1)

        return run

    def clock(self) -> float:
        return self.now


def measure(device: Device, budget_s: float) -> tuple[list[float], list[float], float]:
    times = measure_layers(device.runner("layer", 1.0), device.runner("head", 0.5), 100, budget_s, device.clock)
    return list(times.decode.seconds), list(times.head.seconds), times.prefill_s


def test_times_are_those_of_a_layer_of_the_head_and_of_a_token_of_a_chunk() -> None:
    decode, head, prefill_s = measure(Device(), budget_s=1e4)
    assert decode == [10 + rows for rows in MEASURED_ROWS]
    assert head == [(10 + rows) / 2 for rows in MEASURED_ROWS]
    assert prefill_s == pytest.approx(1.1)


def test_warm_ups_do_not_count() -> None:
    assert measure(Device(slow_runs=13), budget_s=0) == measure(Device(), budget_s=0)


def test_a_slow_moment_does_not_count_beside_the_median() -> None:
    assert measure(Device(slow_runs=13 + 5), budget_s=1e6) == measure(Device(), budget_s=1e6)


def test_without_a_budget_each_is_warmed_up_and_run_once() -> None:
    device = Device()
    measure(device, budget_s=0)
    assert len(device.runs) == 2 * (2 * len(MEASURED_ROWS) + 1)


def test_a_budget_is_overrun_by_one_round_at_most() -> None:
    device = Device()
    measure(device, budget_s=3000)
    round_s = 1.5 * sum(10 + rows for rows in MEASURED_ROWS) + 110
    assert 3000 <= device.now < 3000 + round_s


def test_a_large_budget_is_not_used_up() -> None:
    device = Device()
    measure(device, budget_s=1e9)
    assert device.now < 1e5
