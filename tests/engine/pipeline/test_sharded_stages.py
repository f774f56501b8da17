"""Stages that ranks share: bit for bit the logits of the whole model over as many ranks, wherever it is cut."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.forward import ModelForward
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.served_model import prepare_model
from tests.engine.distributed.thread_ranks import ThreadGroup, loading_in_turn, on_every_rank
from tests.engine.pipeline.stages import config_of, step_of
from tests.engine.test_forward import NUM_BLOCKS, SCHEDULES, make_stories, random_schedule

CUTS = ((1,), (2,), (1, 2))
KINDS = ("llama", "gpt2", "mixtral", "gemma2", "phi3", "deepseek_v3")
Ranks = list[ModelForward]
ShardedStages = list[list[StageForward]]


@pytest.fixture(scope="module", autouse=True)
def load_in_turn() -> Iterator[None]:
    with loading_in_turn():
        yield


@pytest.fixture(scope="module")
def whole(checkpoint: Callable[[str], Path]) -> Callable[[str, str], Ranks]:
    """A named model over two ranks."""

    @cache
    def build(kind: str, dtype: str) -> Ranks:
        config = config_of(checkpoint(kind), dtype)
        return on_every_rank(
            2, lambda group: prepare_model(config, lambda *_: None, group).forward_over(NUM_BLOCKS)
        )

    return build


def load_ranked(path: Path, dtype: str, cuts: tuple[int, ...]) -> ShardedStages:
    """The stages of a model that is cut before each layer in `cuts`, each over two ranks."""
    config = config_of(path, dtype)

    def load(layers: LayerRange) -> Callable[[ThreadGroup], StageForward]:
        return lambda group: prepare_model(config, lambda *_: None, group, layers).stage_over(NUM_BLOCKS)

    ranges = zip([0, *cuts], [*cuts, 3], strict=True)
    return [on_every_rank(2, load(LayerRange(begin, end, 3))) for begin, end in ranges]


def run_ranked(stages: ShardedStages, batch: StepTensors) -> Tensor:
    """Logits of a step that goes through all stages; ranks get what the first of the stage before made."""
    activations: Tensor | None = None
    for ranks in stages[:-1]:
        received = activations
        outputs = on_every_rank(2, lambda group: ranks[group.rank].compute(batch, received))  # noqa: B023
        first, second = (output for output in outputs if isinstance(output, Tensor))
        assert torch.equal(first, second), "all ranks have the same activations behind a layer"
        activations = first
    logits = on_every_rank(2, lambda group: stages[-1][group.rank].compute(batch, activations))
    return torch.cat([output.whole for output in logits if isinstance(output, NeededLogits)], dim=-1)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_of_two_ranks_have_the_bits_of_the_whole_model_over_two(
    checkpoint: Callable[[str], Path],
    whole: Callable[[str, str], Ranks],
    kind: str,
    dtype: str,
    cuts: tuple[int, ...],
) -> None:
    ranks, stages = whole(kind, dtype), load_ranked(checkpoint(kind), dtype, cuts)
    schedules = [schedule() for schedule in SCHEDULES]
    for steps in [*schedules, random_schedule(make_stories(6, [45, 3, 31, 18, 37]), 0)]:
        for step in steps:
            batch = step_of(step)
            expected = torch.cat(on_every_rank(2, lambda group: ranks[group.rank](batch)), dim=-1)  # noqa: B023
            assert torch.equal(run_ranked(stages, batch), expected)
