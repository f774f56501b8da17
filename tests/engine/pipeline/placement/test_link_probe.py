"""Links from samples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.placement.link_probe import (
    ProbeError,
    TimedTransfer,
    goodput_bytes_per_s,
    measured_link,
    one_way_delay_s,
)
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Link, PeerId


def transfers(round_trip_s: float, bytes_per_s: float, *sizes: int) -> list[TimedTransfer]:
    return [TimedTransfer(size, round_trip_s + size / bytes_per_s) for size in sizes]


@given(st.floats(1e-5, 1), st.floats(1e4, 1e9))
def test_a_link_is_found_again_from_its_samples(delay_s: float, bytes_per_s: float) -> None:
    samples = transfers(2 * delay_s, bytes_per_s, *[1 << 20] * 3, *[16 << 20] * 3)
    link = measured_link(COORDINATOR, PeerId("a"), [2 * delay_s] * 3, samples)
    assert link == Link(COORDINATOR, PeerId("a"), delay_s, link.bytes_per_s)
    assert link.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)


@pytest.mark.parametrize("outlier", range(6))
@pytest.mark.parametrize("factor", [0.01, 100])
def test_one_outlier_of_each_kind_changes_nothing(outlier: int, factor: float) -> None:
    samples = transfers(0.1, 1e6, *[1 << 20] * 3, *[4 << 20] * 3)
    disturbed = list(samples)
    disturbed[outlier] = TimedTransfer(samples[outlier].num_bytes, factor * samples[outlier].seconds)
    assert goodput_bytes_per_s(disturbed) == goodput_bytes_per_s(samples) == pytest.approx(1e6)
    assert one_way_delay_s([0.1, 0.1 * factor, 0.1]) == 0.05


def test_where_more_bytes_took_no_longer_the_whole_time_bounds_goodput() -> None:
    samples = [*transfers(0.2, 1e9, *[1000] * 3), *[TimedTransfer(2000, 0.1)] * 3]
    assert goodput_bytes_per_s(samples) == 20_000


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "one size or none"),
        (transfers(0.1, 1e6, 10, 10, 10), "one size or none"),
        (transfers(0.1, 1e6, 10, 10, 10, 20, 20), "2 transfers of 20 bytes are too few"),
        ([TimedTransfer(size, 0.0) for size in (1, 1, 1, 2, 2, 2)], "2 bytes took no time"),
    ],
)
def test_samples_that_tell_nothing_are_refused(samples: list[TimedTransfer], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        goodput_bytes_per_s(samples)


def test_two_round_trips_are_too_few() -> None:
    with pytest.raises(ProbeError, match="2 round trips are too few"):
        one_way_delay_s([0.1, 0.1])
