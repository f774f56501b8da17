"""Checkpoints that are stored quantized, divided over ranks: the same codes and scales as one rank has."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.forward import ModelForward
from distllm.engine.served_model import prepare_model
from tests.engine.distributed.test_sharded_forward import load_in_turn, run
from tests.engine.distributed.thread_ranks import ThreadGroup, on_every_rank
from tests.engine.test_forward import NUM_BLOCKS, TOLERANCE, Part, Story
from tests.engine.test_stored_quantization import FORMATS, load, write

Checkpoints = Callable[[str], Path]
_in_turn = load_in_turn


def ranks_of(path: Path, size: int = 2) -> list[ModelForward]:
    config = EngineConfig(model=str(path), device="cpu", max_model_len=128, num_threads=1)

    def prepare(group: ThreadGroup) -> ModelForward:
        return prepare_model(config, lambda *_: None, group).forward_over(NUM_BLOCKS)

    return on_every_rank(size, prepare)


@pytest.fixture
def step() -> list[Part]:
    return [Part(Story(tuple(range(5, 45)), (4, 2, 7)), 0, 40)]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("gptq sorted", "W8A8")])
def test_ranks_of_a_quantized_checkpoint_have_the_logits_of_one(
    checkpoint: Checkpoints, tmp_path: Path, step: list[Part], name: str
) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS[name])
    one = load(packed)
    expected = one.runner.forward(build_step_tensors([step[0].chunk()], range(40)))
    (logits,) = run(ranks_of(packed), step)
    assert (logits - expected).abs().max() < TOLERANCE


def test_experts_of_a_quantized_checkpoint_are_divided(
    checkpoint: Checkpoints, tmp_path: Path, step: list[Part]
) -> None:
    packed, _ = write(checkpoint("mixtral"), tmp_path, *FORMATS["gptq"])
    expected = load(packed).runner.forward(build_step_tensors([step[0].chunk()], range(40)))
    (logits,) = run(ranks_of(packed), step)
    assert (logits - expected).abs().max() < TOLERANCE


def test_inputs_rounded_by_each_rank_differ_by_their_rounding_alone(
    checkpoint: Checkpoints, tmp_path: Path, step: list[Part]
) -> None:
    """Where activations are rounded too, a rank rounds its own inputs by a scale of their own."""
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS["W8A8"])
    expected = load(packed).runner.forward(build_step_tensors([step[0].chunk()], range(40)))
    (logits,) = run(ranks_of(packed), step)
    difference = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert difference.max() < 0.1
    assert not torch.equal(logits, expected)


def test_inputs_that_were_sorted_cannot_be_divided(checkpoint: Checkpoints, tmp_path: Path) -> None:
    packed, _ = write(checkpoint("llama"), tmp_path, *FORMATS["gptq sorted"])
    with pytest.raises(CheckpointError, match="o_proj cannot be divided over ranks: its inputs are sorted"):
        ranks_of(packed)
