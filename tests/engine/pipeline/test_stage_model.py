"""Every kind of decoder in stages: bit for bit the logits of the whole model, step after step."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from tests.engine.conftest import Served
from tests.engine.pipeline.stages import check_bits, config_of, load_stages
from tests.engine.test_forward import KINDS, NUM_BLOCKS, SCHEDULES, Part, make_stories, mixed_batch, random_schedule

Serve = Callable[..., Served]
Stages = Callable[..., list[StageForward]]
CUTS = ((1,), (2,), (1, 2))


@pytest.fixture(scope="module")
def stages(checkpoint: Callable[[str], Path]) -> Stages:
    """The stages of a named model that is cut before some of its layers."""

    @cache
    def build(
        kind: str, cuts: tuple[int, ...], dtype: str = "float32", backend: str = "auto"
    ) -> list[StageForward]:
        return load_stages(config_of(checkpoint(kind), dtype, attention_backend=backend), cuts, NUM_BLOCKS)

    return build


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_have_the_bits_of_the_whole_model(
    serve: Serve, stages: Stages, kind: str, dtype: str, cuts: tuple[int, ...]
) -> None:
    served, cut = serve(kind, dtype), stages(kind, cuts, dtype)
    for schedule in SCHEDULES:
        check_bits(served, cut, schedule())
    check_bits(served, cut, random_schedule(make_stories(6, [45, 3, 31, 18, 37]), 0))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_torch_has_them_as_well(serve: Serve, stages: Stages, kind: str) -> None:
    check_bits(serve(kind, backend="reference"), stages(kind, (1, 2), backend="reference"), mixed_batch())


def test_frequencies_are_those_of_the_longest_sequence_in_every_stage(serve: Serve, stages: Stages) -> None:
    short, long = make_stories(7, [20, 90])
    steps = [[Part(short, 0, 20), Part(long, 0, 60)], [Part(long, 60, 90)]]
    check_bits(serve("phi3-longrope"), stages("phi3-longrope", (1, 2)), steps)
