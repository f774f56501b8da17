"""Every kind of decoder in stages: bit for bit the logits of the whole model, step after step."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from tests.engine.conftest import Served
from tests.engine.pipeline.stages import config_of, load_stages, run_stages
from tests.engine.test_forward import KINDS, NUM_BLOCKS, SCHEDULES, Part, make_stories, random_schedule

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


def run_whole(served: Served, step: Sequence[Part]) -> Tensor:
    num_tokens = sum(part.end - part.start for part in step)
    return served.executor.runner.forward(build_step_tensors([part.chunk() for part in step], range(num_tokens)))  # type: ignore[attr-defined]


def run_cut(stages: Sequence[StageForward], step: Sequence[Part]) -> Tensor:
    num_tokens = sum(part.end - part.start for part in step)
    return run_stages(stages, build_step_tensors([part.chunk() for part in step], range(num_tokens))).whole


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_have_the_bits_of_the_whole_model(
    serve: Serve, stages: Stages, kind: str, dtype: str, cuts: tuple[int, ...]
) -> None:
    served, cut = serve(kind, dtype), stages(kind, cuts, dtype)
    for schedule in SCHEDULES:
        for step in schedule():
            assert torch.equal(run_cut(cut, step), run_whole(served, step))
    for step in random_schedule(make_stories(6, [45, 3, 31, 18, 37]), 0):
        assert torch.equal(run_cut(cut, step), run_whole(served, step))
