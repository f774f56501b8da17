"""Amounts that people read."""

import pytest

from distllm.engine.byte_size import byte_size, parse_byte_size


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


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("50GiB", 50 << 30), (" 1.5 TiB", 3 << 39), ("1KiB", 1024), ("0MiB", 0)]
)
def test_amounts_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert parse_byte_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "50", "50GB", "-1GiB", "GiB", "1e3GiB", "50gib"])
def test_what_is_no_amount_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ValueError, match="such as 50GiB, not"):
        parse_byte_size(text)
