"""A lossy codec is chosen where it is allowed and saves time, and nowhere else."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.wire.codec_choice import CodecCost, choose_codec
from distllm.engine.pipeline.wire.codec_names import CodecName

COSTS: dict[CodecName, CodecCost] = {
    "none": CodecCost(8192, math.inf, math.inf),
    "fp8": CodecCost(4100, 50_000, 100_000),  # 30 us a token
    "int8": CodecCost(4224, 100_000, 200_000),  # 15 us a token
}
ALL: tuple[CodecName, ...] = ("none", "fp8", "int8")


@pytest.mark.parametrize(
    ("goodput_bytes_per_s", "chosen"),
    [
        (1e9, "none"),  # 8.2 us as they are
        (2.5e8, "none"),  # 32.8 us against 31.9 us of int8, which is no tenth less
        (2e8, "int8"),  # 41.0 us, 50.5 us of fp8, 36.1 us of int8
        (1e6, "fp8"),  # bytes alone matter
    ],
)
def test_the_fastest_codec_is_chosen_by_goodput(goodput_bytes_per_s: float, chosen: CodecName) -> None:
    assert choose_codec(ALL, goodput_bytes_per_s, COSTS) == chosen


@pytest.mark.parametrize("allowed", [(), ("none",)])
def test_nothing_lossy_is_chosen_unless_it_is_allowed(allowed: tuple[CodecName, ...]) -> None:
    assert choose_codec(allowed, 1.0, COSTS) == "none"
    assert choose_codec((*allowed, "int8"), 1.0, COSTS) == "int8"


@given(
    st.sets(st.sampled_from(ALL)),
    st.floats(1e3, 1e11),
    st.lists(
        st.builds(CodecCost, st.integers(1, 1 << 20), st.floats(1, 1e9), st.floats(1, 1e9)), min_size=3, max_size=3
    ),
)
def test_what_is_chosen_is_allowed_and_never_slower_than_none(
    allowed: set[CodecName], goodput: float, costs: list[CodecCost]
) -> None:
    by_name = dict(zip(ALL, costs, strict=True))
    chosen = choose_codec(allowed, goodput, by_name)
    assert chosen in allowed | {"none"}
    chosen_s = by_name[chosen].seconds_per_token(goodput)
    assert chosen_s <= by_name["none"].seconds_per_token(goodput)
    assert all(chosen_s * 0.9 <= by_name[other].seconds_per_token(goodput) for other in allowed)
