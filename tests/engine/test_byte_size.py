"""Amounts that people read."""

import pytest

from distllm.engine.byte_size import byte_size


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (12, "12 bytes"),
        (2304, "2.25 KiB"),
        (63 << 20, "63.0 MiB"),
        (300 << 20, "0.29 GiB"),
        (23 << 30, "23.0 GiB"),
        (2000 << 30, "2,000 GiB"),
    ],
)
def test_an_amount_is_said_in_the_unit_that_suits_it(num_bytes: int, text: str) -> None:
    assert byte_size(num_bytes) == text
