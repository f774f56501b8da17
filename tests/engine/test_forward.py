"""Every kind of decoder in paged steps of every shape: against transformers' plain forward, and bit against bit."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.interface import BLOCK_SIZE, BlockId, SequenceChunk, SequenceId

TOLERANCE = 1e-4
VOCAB_SIZE = 131
NUM_BLOCKS = 40
KINDS = (
    "llama",
    "llama-odd",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma2",
    "gpt2",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "gemma3",
    "qwen2_moe",
    "deepseek_v3",
    "phimoe",
)


@dataclass(frozen=True)
class Story:
    """A sequence's token ids and the blocks that hold its KV."""

    token_ids: tuple[int, ...]
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Tokens start .. end of a story, computed in one step."""

    story: Story
    start: int
    end: int

    def chunk(self) -> SequenceChunk:
        table = [BlockId(block) for block in self.story.blocks[: -(-self.end // BLOCK_SIZE)]]
        return SequenceChunk(SequenceId(0), self.story.token_ids[self.start : self.end], self.start, table, None)


Schedule = Sequence[Sequence[Part]]
Serve = Callable[..., Any]
PlainLogits = Callable[[str, tuple[int, ...]], Tensor]


def make_stories(seed: int, lengths: Sequence[int]) -> list[Story]:
    """Random token ids, and blocks in random order, no two stories sharing one."""
    random_source = random.Random(seed)
    blocks = random_source.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    stories = []
    for length in lengths:
        num_blocks = -(-length // BLOCK_SIZE)
        token_ids = tuple(random_source.randrange(VOCAB_SIZE) for _ in range(length))
        stories.append(Story(token_ids, tuple(blocks[:num_blocks])))
        del blocks[:num_blocks]
    return stories


def whole_prefill() -> Schedule:
    (story,) = make_stories(1, [45])
    return [[Part(story, 0, 45)]]


def chunked_prefill() -> Schedule:
    (story,) = make_stories(2, [45])
    ends = [7, 16, 17, 33, 45]
    return [[Part(story, start, end)] for start, end in zip([0, *ends], ends, strict=False)]


def mixed_batch() -> Schedule:
    """One story decodes token by token while two others prefill in chunks beside it."""
    first, second, third = make_stories(3, [30, 41, 20])
    return [
        [Part(first, 0, 26), Part(second, 0, 5)],
        [Part(first, 26, 27), Part(second, 5, 29), Part(third, 0, 19)],
        [Part(third, 19, 20), Part(first, 27, 28), Part(second, 29, 41)],
        [Part(first, 28, 29)],
        [Part(first, 29, 30)],
    ]


def prefix_hit() -> Schedule:
    """The second story begins with two blocks of the first and starts behind them."""
    first, second = make_stories(4, [40, 44])
    shared = Story(first.token_ids[:32] + second.token_ids[32:], first.blocks[:2] + second.blocks[2:])
    return [[Part(first, 0, 40)], [Part(shared, 32, 43)], [Part(shared, 43, 44)]]


def preemption() -> Schedule:
    """The first story loses its blocks to the second halfway, and is computed again in others."""
    first, second, spare = make_stories(5, [39, 48, 39])
    robber = Story(second.token_ids, first.blocks[:2] + second.blocks[2:])
    again = Story(first.token_ids, spare.blocks)
    return [
        [Part(first, 0, 24)],
        [Part(robber, 0, 30)],
        [Part(again, 0, 20), Part(robber, 30, 48)],
        [Part(again, 20, 38)],
        [Part(again, 38, 39)],
    ]


SCHEDULES: tuple[Callable[[], Schedule], ...] = (
    whole_prefill,
    chunked_prefill,
    mixed_batch,
    prefix_hit,
    preemption,
)


def run(executor: LocalExecutor, step: Sequence[Part]) -> list[Tensor]:
    """Logits of every token of every part of one step."""
    lengths = [part.end - part.start for part in step]
    logits = executor.runner.forward(build_step_tensors([part.chunk() for part in step], range(sum(lengths))))
    return list(torch.split(logits, lengths))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("backend", ["paged_cpu", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_the_logits_of_the_plain_forward(
    serve: Serve, plain_logits: PlainLogits, kind: str, backend: str, schedule: Callable[[], Schedule]
) -> None:
    executor = serve(kind, backend=backend).executor
    for step in schedule():
        for part, logits in zip(step, run(executor, step), strict=True):
            expected = plain_logits(kind, part.story.token_ids)[part.start : part.end]
            assert (logits - expected).abs().max() < TOLERANCE


def random_schedule(stories: Sequence[Story], seed: int) -> Schedule:
    """Chunks of random lengths in random company, until every story is computed."""
    random_source = random.Random(seed)
    done = [0] * len(stories)
    steps = []
    while any(end < len(story.token_ids) for end, story in zip(done, stories, strict=True)):
        step = []
        for index, story in enumerate(stories):
            left = len(story.token_ids) - done[index]
            length = min(left, random_source.choice([0, 1, 1, 2, 7, 16, 19]))
            if length:
                step.append(Part(story, done[index], done[index] + length))
                done[index] += length
        random_source.shuffle(step)
        if step:
            steps.append(step)
    return steps


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_chunks_blocks_or_company(serve: Serve, kind: str, dtype: str) -> None:
    executor = serve(kind, dtype).executor
    stories = make_stories(6, [45, 3, 31, 18, 37])
    alone = [run(executor, [Part(story, 0, len(story.token_ids))])[0] for story in stories]
    for seed in range(6):
        moved = make_stories(6, [45, 3, 31, 18, 37]) if seed % 2 else shuffled(stories, seed)
        for step in random_schedule(moved, seed):
            for part, logits in zip(step, run(executor, step), strict=True):
                expected = alone[moved.index(part.story)][part.start : part.end]
                assert torch.equal(logits, expected)


def shuffled(stories: Sequence[Story], seed: int) -> list[Story]:
    """The same stories in other blocks."""
    random_source = random.Random(seed)
    blocks = random_source.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    moved = []
    for story in stories:
        moved.append(Story(story.token_ids, tuple(blocks[: len(story.blocks)])))
        del blocks[: len(story.blocks)]
    return moved


def test_longrope_serves_every_sequence_with_the_frequencies_of_the_longest(
    serve: Serve, plain_logits: PlainLogits
) -> None:
    """transformers switches frequencies at 64 tokens; a server's sequences of all lengths get the long ones."""
    executor = serve("phi3-longrope").executor
    short, long = make_stories(7, [20, 90])
    both = Part(short, 0, 20), Part(long, 0, 90)
    logits = run(executor, both)
    assert (logits[1] - plain_logits("phi3-longrope", long.token_ids)).abs().max() < TOLERANCE
    assert torch.equal(logits[0], run(executor, both[:1])[0])
    assert (logits[0] - plain_logits("phi3-longrope", short.token_ids)).abs().max() > TOLERANCE
