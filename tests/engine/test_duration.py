"""Durations in words."""

import pytest

from distllm.engine.duration import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 µs"),
        (2.5e-7, "0.25 µs"),
        (0.00012, "120 µs"),
        (0.0451, "45.1 ms"),
        (1.2, "1.20 s"),
        (3456.7, "3,457 s"),
    ],
)
def test_a_duration_has_three_figures_or_so(seconds: float, text: str) -> None:
    assert duration(seconds) == text
