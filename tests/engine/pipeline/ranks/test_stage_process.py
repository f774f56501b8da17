"""A stage in processes: the bits of ranks in one process, and an end that is told whichever rank is lost."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Queue

import psutil
import pytest
import torch

from distllm.engine.batch import build_step_tensors
from distllm.engine.config import EngineConfig
from distllm.engine.interface import SampleSpec, StepInput
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.placement.measuring import MEASURED_ROWS
from distllm.engine.pipeline.ranks.stage_process import RanksLost, StageProcess
from distllm.engine.sampling_params import SamplingParams
from distllm.engine.served_model import prepare_model
from tests.engine.distributed.thread_ranks import loading_in_turn, on_every_rank
from tests.engine.pipeline.stages import config_of
from tests.engine.test_forward import NUM_BLOCKS, Part, make_stories

LAST = LayerRange(2, 3, 3)
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def config(checkpoint: Callable[[str], Path]) -> EngineConfig:
    return replace(config_of(checkpoint("llama")), num_threads=1, tensor_parallel_size=2)


class Ranks:
    """The processes of a stage, and what was said when they were lost."""

    def __init__(self, config: EngineConfig, layers: LayerRange) -> None:
        self.losses: Queue[str] = Queue()
        before = {child.pid for child in psutil.Process().children()}
        self.stage = StageProcess(config, layers, lambda *_: None, self.losses.put)
        (self.first,) = (child for child in psutil.Process().children() if child.pid not in before)
        (self.second,) = self.first.children()

    def has_ended(self) -> bool:
        _, alive = psutil.wait_procs([self.first, self.second], TIMEOUT_S)
        return not alive


@pytest.fixture
def last(config: EngineConfig) -> Iterator[Ranks]:
    """The last of three layers and the head."""
    ranks = Ranks(config, LAST)
    yield ranks
    ranks.stage.close()
    assert ranks.has_ended()


def step_of_parts(parts: list[Part], *, samples: bool) -> StepInput:
    spec = SampleSpec(params=SamplingParams(temperature=0.0), seed=0, index=0) if samples else None
    return StepInput(0, [replace(part.chunk(), sample=spec) for part in parts])


def test_it_computes_what_ranks_in_one_process_do(config: EngineConfig, last: Ranks) -> None:
    times = last.stage.time_layer(budget_s=0.0)
    assert times.decode.rows == times.head.rows == MEASURED_ROWS
    first = Ranks(config, LayerRange(0, 2, 3)).stage
    with loading_in_turn():
        ranks = on_every_rank(
            2, lambda group: prepare_model(config, lambda *_: None, group).forward_over(NUM_BLOCKS)
        )
    for stage in (first, last.stage):
        stage.allocate(NUM_BLOCKS)
    one, other = make_stories(3, [40, 7])
    for parts in ([Part(one, 0, 30), Part(other, 0, 6)], [Part(other, 6, 7), Part(one, 30, 40)]):
        step = step_of_parts(parts, samples=True)
        batch = build_step_tensors(step.chunks, ())
        activations = first.compute(step, batch, None)
        assert activations is not None
        output = last.stage.sample(step, activations)
        lengths = [part.end - part.start for part in parts]
        whole = build_step_tensors(step.chunks, [lengths[0] - 1, sum(lengths) - 1])
        logits = torch.cat(on_every_rank(2, lambda group: ranks[group.rank](whole)), dim=-1)  # noqa: B023
        assert [chunk.token_id for chunk in output.chunks] == logits.argmax(dim=-1).tolist()
        assert last.stage.compute(step, batch, activations) is None, "a rebuild of the last stage yields nothing"
    with pytest.raises(RanksLost, match=r"layers 2 to 2 of 3 take activations"):
        last.stage.compute(step, batch, None)
    first.close()


@pytest.mark.parametrize(
    ("rank", "number"), [("first", signal.SIGKILL), ("first", signal.SIGSTOP), ("second", signal.SIGSTOP)]
)
def test_a_rank_that_is_lost_or_hangs_ends_the_stage(last: Ranks, rank: str, number: signal.Signals) -> None:
    last.stage.allocate(NUM_BLOCKS)
    (story,) = make_stories(3, [20])
    step = step_of_parts([Part(story, 0, 20)], samples=False)
    received = torch.zeros(20, 64)
    os.kill(getattr(last, rank).pid, number)
    with pytest.raises(RanksLost) as caught:
        last.stage.compute(step, build_step_tensors(step.chunks, ()), received)
    assert last.losses.get(timeout=TIMEOUT_S) == str(caught.value)
    assert "rank" in str(caught.value)
    assert last.has_ended()


def test_an_idle_stage_tells_its_end_as_well(last: Ranks) -> None:
    last.second.kill()
    assert last.losses.get(timeout=TIMEOUT_S) == "rank 1 ended (signal 9)"


def test_a_stage_that_cannot_be_divided_is_refused_in_one_line(config: EngineConfig) -> None:
    before = psutil.Process().children()
    with pytest.raises(RanksLost, match="4 attention heads cannot be divided over 5 ranks"):
        StageProcess(replace(config, tensor_parallel_size=5), LAST, lambda *_: None, lambda _: None)
    assert set(psutil.Process().children()) <= set(before)
