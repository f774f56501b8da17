"""Every kind of decoder over two and three ranks: the logits of one, and bits that depend on the prefix alone."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.factory import build_executor
from distllm.engine.forward import ModelForward
from distllm.engine.quantization.config import QuantizationConfig
from distllm.engine.served_model import prepare_model
from tests.engine.distributed.thread_ranks import ThreadGroup, loading_in_turn, on_every_rank
from tests.engine.test_forward import KINDS, NUM_BLOCKS, SCHEDULES, TOLERANCE, Part, Schedule, make_stories

PlainLogits = Callable[[str, tuple[int, ...]], Tensor]
Ranks = list[ModelForward]


@pytest.fixture(scope="module", autouse=True)
def load_in_turn() -> Iterator[None]:
    with loading_in_turn():
        yield


@pytest.fixture(scope="module")
def ranks(checkpoint: Callable[[str], Path]) -> Callable[..., Ranks]:
    """The forward passes of all ranks of a named model."""

    @cache
    def build(name: str, size: int, dtype: str = "float32", backend: str = "auto") -> Ranks:
        config = EngineConfig(
            model=str(checkpoint(name)),
            device="cpu",
            dtype=dtype,  # type: ignore[arg-type]
            attention_backend=backend,  # type: ignore[arg-type]
            max_model_len=128,
            num_threads=1,
        )

        def load(group: ThreadGroup) -> ModelForward:
            return prepare_model(config, lambda *_: None, group).forward_over(NUM_BLOCKS)

        return on_every_rank(size, load)

    return build


def run(ranks: Ranks, step: Sequence[Part]) -> list[Tensor]:
    """Logits over the whole vocabulary of every token of every part of one step."""
    lengths = [part.end - part.start for part in step]
    batch = build_step_tensors([part.chunk() for part in step], range(sum(lengths)))
    logits = on_every_rank(len(ranks), lambda group: ranks[group.rank](batch))
    return list(torch.split(torch.cat(logits, dim=-1), lengths))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_together_have_the_logits_of_one(
    ranks: Callable[..., Ranks], plain_logits: PlainLogits, kind: str, backend: str, size: int
) -> None:
    forwards = ranks(kind, size, backend=backend)
    for schedule in SCHEDULES:
        for step in schedule():
            for part, logits in zip(step, run(forwards, step), strict=True):
                expected = plain_logits(kind, part.story.token_ids)[part.start : part.end]
                assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_chunks_or_company(ranks: Callable[..., Ranks], kind: str, size: int) -> None:
    forwards = ranks(kind, size, dtype="bfloat16")
    stories = make_stories(6, [45, 3, 31])
    alone = [run(forwards, [Part(story, 0, len(story.token_ids))])[0] for story in stories]
    steps: Schedule = [
        [Part(stories[0], 0, 16), Part(stories[2], 0, 30)],
        [Part(stories[0], 16, 44), Part(stories[1], 0, 3)],
        [Part(stories[2], 30, 31), Part(stories[0], 44, 45)],
    ]
    for step in steps:
        for part, logits in zip(step, run(forwards, step), strict=True):
            assert torch.equal(logits, alone[stories.index(part.story)][part.start : part.end])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "phi3"])
def test_weights_in_groups_are_quantized_as_one_rank_does(checkpoint: Callable[[str], Path], kind: str) -> None:
    """A group is never cut, so both have the same codes and scales."""
    quantization = QuantizationConfig(bits=4, group_size=32)
    config = EngineConfig(
        model=str(checkpoint(kind)), device="cpu", dtype="float32", quantization=quantization, max_model_len=128,
        num_blocks=NUM_BLOCKS, num_threads=1,
    )  # fmt: skip
    one = build_executor(config, lambda *_: None)
    assert isinstance(one, LocalExecutor)

    def load(group: ThreadGroup) -> ModelForward:
        return prepare_model(config, lambda *_: None, group).forward_over(NUM_BLOCKS)

    two = on_every_rank(2, load)
    (story,) = make_stories(8, [40])
    step = [Part(story, 0, 40)]
    expected = one.runner.forward(build_step_tensors([step[0].chunk()], range(40)))
    (logits,) = run(two, step)
    assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("num_rows", [63, 65])
def test_a_tensor_of_another_shape_is_refused_though_a_rank_takes_no_more_than_its_part(
    checkpoint: Callable[[str], Path], tmp_path: Path, num_rows: int
) -> None:
    source, name = tmp_path / "source", "model.layers.0.self_attn.q_proj.weight"
    shutil.copytree(checkpoint("llama"), source)
    tensors = load_file(source / "model.safetensors")
    tensors[name] = torch.zeros(num_rows, tensors[name].shape[1])
    save_file(tensors, source / "model.safetensors")
    config = EngineConfig(model=str(source), device="cpu", num_threads=1)
    with pytest.raises(CheckpointError, match=rf"q_proj\.weight has shape \({num_rows}, 64\), config\.json asks"):
        on_every_rank(2, lambda group: prepare_model(config, lambda *_: None, group))
