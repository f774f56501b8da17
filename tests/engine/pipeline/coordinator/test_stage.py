"""What stages are together."""

from dataclasses import replace

import pytest

from distllm.engine.numerics import kernels_of
from distllm.engine.pipeline.coordinator.stage import merge
from distllm.engine.pipeline.wire.codec_names import CodecName
from tests.scheduler.slot_executor import executor_info

INFO = replace(executor_info(64, 16, 200), numerics="dots")


@pytest.mark.parametrize(
    ("others", "codecs", "numerics"),
    [
        ("dots", ("none", "none"), "dots"),
        ("dots/w8", ("none", "none"), "dots|dots/w8"),
        ("dots", ("none", "fp8"), "dots|in fp8"),
        ("dots/w8", ("none", "fp8"), "dots|dots/w8|in fp8"),
    ],
)
def test_numerics_name_all_that_changes_bits(others: str, codecs: tuple[CodecName, ...], numerics: str) -> None:
    merged = merge([INFO, replace(INFO, numerics=others)], codecs)
    assert merged.numerics == numerics
    assert kernels_of(merged.numerics) == "dots"
