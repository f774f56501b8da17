"""The arrival process."""

import numpy as np
import pytest

from benchmarks.arrivals import arrival_times_s


def test_an_infinite_rate_sends_everything_at_once() -> None:
    assert arrival_times_s(3, float("inf"), 1.0, np.random.default_rng(0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 5.0])
def test_arrivals_rise_and_keep_the_rate(burstiness: float) -> None:
    times = arrival_times_s(500, 20.0, burstiness, np.random.default_rng(1))
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] == pytest.approx(500 / 20.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_variation_that_the_burstiness_says(burstiness: float) -> None:
    gaps = np.diff(arrival_times_s(20_000, 1.0, burstiness, np.random.default_rng(2)))
    assert gaps.std() / gaps.mean() == pytest.approx(1 / np.sqrt(burstiness), rel=0.05)


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(arrival_times_s(20_000, 2.0, 1.0, np.random.default_rng(3)))
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(gaps, quantile) == pytest.approx(-np.log(1 - quantile) / 2.0, rel=0.06)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, second = (arrival_times_s(10, 5.0, 1.0, np.random.default_rng(7)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_senseless_rates_are_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        arrival_times_s(1, rate, burstiness, np.random.default_rng(0))
