"""A stage's steps: block copies, candidates, what is refused, and the check before the first of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.interface import BlockCopy, BlockId
from distllm.engine.pipeline.stage_model.stage_forward import WrongActivations
from distllm.engine.self_check import check_forward, plain_outputs
from distllm.engine.served_model import ServedModel
from tests.engine.conftest import Served
from tests.engine.pipeline.stages import config_of, load_stage, load_stages, run_stages, step_of
from tests.engine.test_forward import NUM_BLOCKS, Part, Story, make_stories

Checkpoints = Callable[[str], Path]


def test_blocks_are_copied_in_every_stage(checkpoint: Checkpoints, serve: Callable[..., Served]) -> None:
    stages = load_stages(config_of(checkpoint("qwen3")), (1, 2), NUM_BLOCKS)
    (story,) = make_stories(1, [40])
    whole = run_stages(stages, step_of([Part(story, 0, 40)])).whole
    free = next(block for block in range(NUM_BLOCKS) if block not in story.blocks)
    moved = Story(story.token_ids, (free, *story.blocks[1:]))
    copies = [BlockCopy(BlockId(story.blocks[0]), BlockId(free))]
    step = build_step_tensors([Part(moved, 16, 40).chunk()], range(24), copies)
    assert torch.equal(run_stages(stages, step).whole, whole[16:])


def test_the_last_stage_gives_no_more_than_is_read(checkpoint: Checkpoints, serve: Callable[..., Served]) -> None:
    stages = load_stages(config_of(checkpoint("llama")), (2,), NUM_BLOCKS)
    first, second = make_stories(2, [12, 30])
    chunks = [Part(first, 0, 12).chunk(), Part(second, 0, 30).chunk()]
    step = build_step_tensors(chunks, [11, 41], (), [5])
    found = run_stages(stages, step)
    expected = serve("llama").executor.runner.forward.needed(step)  # type: ignore[attr-defined]
    assert found.whole.shape == (1, 131)
    assert torch.equal(found.whole, expected.whole)
    assert found.best is not None
    assert torch.equal(found.best.ids, expected.best.ids)


def test_tokens_are_read_by_the_first_stage_alone(checkpoint: Checkpoints) -> None:
    for kind in ("llama", "gpt2", "opt", "gemma2"):
        stages = load_stages(config_of(checkpoint(kind)), (1, 2), NUM_BLOCKS)
        (story,) = make_stories(3, [20])
        expected = run_stages(stages, step_of([Part(story, 0, 20)]))
        activations: Tensor | None = None
        for stage in stages:
            ids = story.token_ids if stage.layers.is_first else (0,) * 20
            output = stage.compute(step_of([Part(Story(ids, story.blocks), 0, 20)]), activations)
            activations = output if isinstance(output, Tensor) else output.whole
        assert activations is not None
        assert torch.equal(activations, expected.whole)


@pytest.mark.parametrize(
    ("begin", "shape", "dtype", "words"),
    [
        (0, (20, 64), "float32", "layers 0 to 0 of 3 take no activations"),
        (1, None, "float32", "layers 1 to 1 of 3 take activations of the stage before"),
        (
            1,
            (19, 64),
            "float32",
            r"activations are \(19, 64\) of torch.float32, where the step asks for \(20, ",
        ),
        (1, (20, 63), "float32", r"activations are \(20, 63\) of"),
        (1, (1, 20, 64), "float32", r"activations are \(1, 20, 64\) of"),
        (2, (20, 64), "bfloat16", "of torch.bfloat16, where the step asks for .* of torch.float32"),
    ],
)
def test_activations_of_another_step_are_refused(
    checkpoint: Checkpoints, begin: int, shape: tuple[int, ...] | None, dtype: str, words: str
) -> None:
    stage = load_stage(config_of(checkpoint("llama")), begin, begin + 1).stage_over(NUM_BLOCKS)
    received = None if shape is None else torch.zeros(shape, dtype=getattr(torch, dtype))
    (story,) = make_stories(1, [20])
    with pytest.raises(WrongActivations, match=words):
        stage.compute(step_of([Part(story, 0, 20)]), received)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("begin", "scale"), [(0, 1.0), (1, 1.0), (1, 0.002), (2, 1.0)])
def test_a_stage_that_computes_something_else_is_refused(
    checkpoint: Checkpoints, dtype: str, begin: int, scale: float
) -> None:
    """However little its layers add to what came in."""
    served = load_stage(config_of(checkpoint("llama"), dtype, attention_backend="reference"), begin, begin + 1)
    for name, parameter in served.model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_(scale)
    expected = plain_outputs(served.model, served.boundary)
    check_forward(served.forward_over(2), expected)
    turn_mlp(served)
    outputs = "logits" if begin == 2 else "activations"
    with pytest.raises(CheckpointError, match=f"in paged steps its {outputs} differ by"):
        check_forward(served.forward_over(2), expected)


def turn_mlp(served: ServedModel) -> None:
    """Turn the sign of what the stage's first MLP yields."""
    module = next(module for name, module in served.model.named_modules() if name.endswith("mlp"))
    module.register_forward_hook(lambda _, __, output: -output)
