"""One step in, one step out: tokens, log-probabilities, copies of blocks, and harm that stays where it is."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from distllm.engine.executor.local import LocalExecutor
from distllm.engine.forward import ModelForward
from distllm.engine.interface import (
    BlockCopy,
    BlockId,
    ChunkOutput,
    PromptLogprobSpec,
    SampleSpec,
    SequenceChunk,
    SequenceId,
    StepInput,
)
from distllm.engine.model_runner import find_needed_rows
from distllm.engine.sampling_params import SamplingParams

GREEDY = SampleSpec(SamplingParams(temperature=0.0, logprobs=3), seed=0, index=0)
PlainLogits = Callable[[str, tuple[int, ...]], Tensor]


@pytest.fixture(params=["paged_cpu", "reference"])
def executor(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> LocalExecutor:
    served: LocalExecutor = serve("llama", backend=request.param).executor
    return served


def chunk(
    token_ids: Sequence[int],
    blocks: Sequence[int],
    start: int = 0,
    sample: SampleSpec | None = GREEDY,
    prompt_logprobs: PromptLogprobSpec | None = None,
    number: int = 0,
) -> SequenceChunk:
    table = [BlockId(block) for block in blocks]
    return SequenceChunk(SequenceId(number), token_ids, start, table, sample, prompt_logprobs)


def plain_spec(**params: Any) -> SampleSpec:
    return SampleSpec(SamplingParams(**params), seed=0, index=0)


def run(executor: LocalExecutor, *chunks: SequenceChunk, copies: Sequence[BlockCopy] = ()) -> Sequence[ChunkOutput]:
    output = executor.submit(StepInput(7, chunks, copies)).result()
    assert output.step_id == 7
    return output.chunks


def test_a_greedy_token_is_the_best_of_the_plain_forward(
    executor: LocalExecutor, plain_logits: PlainLogits
) -> None:
    ids = (5, 9, 88, 3, 17)
    (output,) = run(executor, chunk(ids, [4]))
    expected = plain_logits("llama", ids)[-1].log_softmax(-1)
    assert output.token_id == int(expected.argmax())
    assert output.logprobs is not None
    assert output.logprobs.logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert list(output.logprobs.top_ids) == expected.topk(3).indices.tolist()
    assert list(output.logprobs.top_logprobs) == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)


def test_outputs_keep_the_order_of_the_chunks(executor: LocalExecutor) -> None:
    ids = [(1, 2, 3), (4, 5), (6, 7, 8, 9)]
    alone = [run(executor, chunk(token_ids, [2]))[0].token_id for token_ids in ids]
    together = run(executor, *(chunk(token_ids, [3 + i], number=i) for i, token_ids in enumerate(ids)))
    assert [output.sequence_id for output in together] == [0, 1, 2]
    assert [output.token_id for output in together] == alone


def test_a_chunk_that_does_not_sample_yields_nothing(executor: LocalExecutor) -> None:
    silent, spoken = run(executor, chunk((1, 2, 3), [1], sample=None), chunk((1, 2, 3), [2], number=1))
    assert (silent.token_id, silent.logprobs, silent.prompt_logprobs, silent.error) == (None, None, (), None)
    assert spoken.token_id is not None


def test_a_step_may_sample_nothing_at_all(executor: LocalExecutor) -> None:
    (output,) = run(executor, chunk((1, 2, 3), [1], sample=None))
    assert output.token_id is None


def test_prompt_tokens_are_scored_over_chunks(executor: LocalExecutor, plain_logits: PlainLogits) -> None:
    ids = (5, 9, 88, 3, 17, 40)
    expected = plain_logits("llama", ids).log_softmax(-1)
    (first,) = run(executor, chunk(ids[:4], [4], sample=None, prompt_logprobs=PromptLogprobSpec(2, ids[1:5])))
    (second,) = run(executor, chunk(ids[4:], [4], 4, prompt_logprobs=PromptLogprobSpec(2, ids[5:])))
    scores = first.prompt_logprobs + second.prompt_logprobs
    assert [score.token_id for score in scores] == list(ids[1:])
    for position, score in enumerate(scores):
        assert score.logprob == pytest.approx(float(expected[position, ids[position + 1]]), abs=1e-4)
        assert list(score.top_ids) == expected[position].topk(2).indices.tolist()
    assert second.token_id == int(expected[-1].argmax())


def test_copied_blocks_go_on_as_the_original(executor: LocalExecutor) -> None:
    ids = (5, 9, 88, 3, 17)
    (original,) = run(executor, chunk(ids, [4]))
    (fork,) = run(executor, chunk((33,), [8], 5), copies=[BlockCopy(BlockId(4), BlockId(8))])
    (again,) = run(executor, chunk((33,), [4], 5))
    assert original.token_id is not None
    assert (fork.token_id, fork.logprobs) == (again.token_id, again.logprobs)


def test_numbers_that_are_none_fail_their_own_chunk_alone(executor: LocalExecutor) -> None:
    (sound,) = run(executor, chunk((1, 2, 3), [2]))
    assert isinstance(executor.runner.forward, ModelForward)
    for layer in executor.runner.forward.cache.layers:
        for stored in layer.kv:
            stored[6] = torch.nan
    scores = PromptLogprobSpec(0, (2, 3))
    outputs = run(
        executor,
        chunk((9,), [6], 5, number=1),
        chunk((1, 2, 3), [3], prompt_logprobs=scores, number=2),
        chunk((9, 9), [6], 5, sample=None, prompt_logprobs=scores, number=3),
    )
    assert [output.token_id for output in outputs] == [None, sound.token_id, None]
    assert [output.error is None for output in outputs] == [False, True, False]
    assert "not numbers" in (outputs[0].error or "")
    assert len(outputs[1].prompt_logprobs) == 2


def test_a_step_that_fails_is_the_futures_exception(executor: LocalExecutor) -> None:
    future = executor.submit(StepInput(1, [chunk((1,), [10_000])]))
    assert future.exception() is not None


def test_rows_are_counted_through_the_batch() -> None:
    needed = find_needed_rows(
        [
            chunk((1, 2, 3), [0], sample=None, prompt_logprobs=PromptLogprobSpec(0, (2, 3))),
            chunk((4,), [0], sample=plain_spec(top_k=7)),
            chunk((5, 6), [0], sample=None),
            chunk((7, 8), [0], prompt_logprobs=PromptLogprobSpec(0, (8,))),
            chunk((9,), [0], sample=plain_spec(temperature=0.0)),
        ]
    )
    assert (needed.rows, needed.scored) == ([0, 1, 6, 7, 3, 8], [0, 3])
    assert (needed.sampled, needed.num_candidates) == ([3, 1, 4], [7, 1])
