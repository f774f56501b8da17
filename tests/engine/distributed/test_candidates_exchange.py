"""Steps over ranks of which the first samples: candidates and whole rows, through the frame and as messages."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.division import divide
from distllm.engine.distributed.hosts.step_messages import decode_result, decode_step, encode_result, encode_step
from distllm.engine.distributed.rank_check import RankCheck
from distllm.engine.distributed.rank_watch import RankWatch
from distllm.engine.distributed.sharding import INNER_UNIT
from distllm.engine.distributed.shared_bytes import create_descriptor
from distllm.engine.distributed.step_exchange import RankResult
from distllm.engine.distributed.step_frame import FrameSize, StepFrame
from distllm.engine.executor.tensor_parallel import ShardedForward
from distllm.engine.forward import ModelForward
from distllm.engine.interface import BlockId, PromptLogprobSpec, SampleSpec, SequenceChunk, SequenceId, StepInput
from distllm.engine.model_runner import ModelRunner
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.sampling_params import SamplingParams
from tests.engine.distributed.test_sharded_forward import load_in_turn
from tests.engine.distributed.test_sharded_forward import ranks as ranks_of_a_model
from tests.engine.test_forward import VOCAB_SIZE

Ranks = list[ModelForward]
_in_turn = load_in_turn
ranks = ranks_of_a_model

LISTED = [
    SamplingParams(temperature=0.0),
    SamplingParams(top_k=5),
    SamplingParams(top_k=40, top_p=0.9, temperature=0.8),
    SamplingParams(top_k=256, min_p=0.01, temperature=2.0),  # more than the vocabulary has
]
WHOLE = [
    SamplingParams(temperature=0.0, logprobs=3),
    SamplingParams(temperature=1.5),
    SamplingParams(temperature=0.9, top_p=0.8),
    SamplingParams(top_k=5, frequency_penalty=1.0),
]


class _ThreadedRanks:
    """A StepExchange with ranks that are threads, through the frame that they share."""

    def __init__(self, forwards: Sequence[ModelForward], frame: StepFrame) -> None:
        self._ranks = list(enumerate(forwards, start=1))
        self._frame = frame
        self._pool = ThreadPoolExecutor(len(forwards))
        self._steps: list[Future[None]] = []

    def send_step(self, batch: StepTensors) -> None:
        self._frame.write(batch)
        self._steps = [self._pool.submit(self._compute, *rank) for rank in self._ranks]

    def receive_results(self, batch: StepTensors) -> list[RankResult]:
        for step in self._steps:
            step.result()
        return [RankResult(b"", self._frame.read_logits(rank, batch)) for rank, _ in self._ranks]

    def close(self) -> None:
        self._pool.shutdown()

    def _compute(self, rank: int, forward: ModelForward) -> None:
        self._frame.write_logits(rank, forward.needed(self._frame.read()))


class _DistantRanks:
    """The same through the messages that go to other hosts."""

    def __init__(self, forwards: Sequence[ModelForward]) -> None:
        self._forwards = forwards
        self._pool = ThreadPoolExecutor(len(forwards))
        self._steps: list[Future[bytearray]] = []

    def send_step(self, batch: StepTensors) -> None:
        message = bytearray(b"".join(encode_step(batch)))
        self._steps = [self._pool.submit(self._compute, forward, message) for forward in self._forwards]

    def receive_results(self, _batch: StepTensors) -> list[RankResult]:
        return [decode_result(step.result()) for step in self._steps]

    def close(self) -> None:
        self._pool.shutdown()

    @staticmethod
    def _compute(forward: ModelForward, message: bytearray) -> bytearray:
        return bytearray(b"".join(encode_result(RankResult(b"", forward.needed(decode_step(message))))))


@pytest.fixture(params=[(2, "frame"), (3, "frame"), (2, "messages")], ids=str)
def sharded(request: pytest.FixtureRequest, ranks: Callable[..., Ranks]) -> Iterator[ShardedForward]:
    num_ranks, way = request.param
    own, *others = ranks("llama", num_ranks)
    vocab_sizes = tuple(len(part) for part in divide(VOCAB_SIZE, num_ranks, INNER_UNIT))
    size = FrameSize(max_tokens=64, max_sequences=8, max_blocks=8, vocab_sizes=vocab_sizes)
    frame_file, arrivals_file = create_descriptor(), create_descriptor()
    frame = StepFrame(frame_file, size)
    exchange = _ThreadedRanks(others, frame) if way == "frame" else _DistantRanks(others)
    yield ShardedForward(
        own,
        exchange,
        RankWatch(Mock(), 60, Mock()),
        Arrivals(arrivals_file, 0, num_ranks),
        RankCheck(own.model, 0),
    )
    exchange.close()
    os.close(frame_file)
    os.close(arrivals_file)


def make_step(params: Sequence[SamplingParams], scored: Sequence[int] = ()) -> StepInput:
    """One chunk for each of `params`; those numbered in `scored` have prompt log-probabilities."""
    chunks = []
    for number, some in enumerate(params):
        token_ids = [(number * 31 + place * 7) % VOCAB_SIZE for place in range(3 + number)]
        sample = SampleSpec(some, seed=number, index=number % 3, history=token_ids if some.needs_history else ())
        prompt = PromptLogprobSpec(2, token_ids[1:]) if number in scored else None
        chunks.append(SequenceChunk(SequenceId(number), token_ids, 0, [BlockId(number)], sample, prompt))
    return StepInput(1, chunks)


class _WholeRows:
    """A Forward that hands over every row whole, whatever is read of it."""

    def __init__(self, forward: ShardedForward) -> None:
        self._forward = forward

    def __call__(self, batch: StepTensors) -> Tensor:
        return self._forward(batch)

    def needed(self, batch: StepTensors) -> NeededLogits:
        whole = self._forward(batch)
        assert whole.shape == (len(batch.needed_rows), VOCAB_SIZE)
        return NeededLogits(whole, None)


@pytest.mark.parametrize(
    ("params", "scored"),
    [
        (LISTED[:1] * 6, ()),
        (LISTED + WHOLE, ()),
        (WHOLE + LISTED, (2, 6)),
        (LISTED, (0, 1, 2, 3)),
        (WHOLE, ()),
    ],
    ids=["greedy", "mixed", "mixed and scored", "scored", "whole"],
)
def test_a_step_gives_what_whole_rows_of_all_ranks_give(
    sharded: ShardedForward, params: list[SamplingParams], scored: tuple[int, ...]
) -> None:
    step = make_step(params, scored)
    for _ in range(2):
        assert ModelRunner(sharded).run(step) == ModelRunner(_WholeRows(sharded)).run(step)


def test_greedy_rows_hand_over_one_token_of_each_rank(sharded: ShardedForward) -> None:
    seen: list[NeededLogits] = []
    receive = sharded.exchange.receive_results

    def spy(batch: StepTensors) -> list[RankResult]:
        results = receive(batch)
        seen.extend(result.logits for result in results)
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded.exchange, "receive_results", spy)
        ModelRunner(sharded).run(make_step(LISTED[:1] * 6))
    assert len(seen) == sharded.arrivals.size - 1
    for part in seen:
        assert part.whole.numel() == 0
        assert part.best is not None
        assert part.best.ids.shape == (6, 1)


def test_a_row_of_no_numbers_fails_alone_wherever_they_stand(sharded: ShardedForward) -> None:
    """A rank that hands over its best tokens hands over that it has none."""
    step = make_step(LISTED)
    expected = ModelRunner(sharded).run(step).chunks
    head = sharded.own.model.get_output_embeddings()
    hook = head.register_forward_hook(_spoil_first_row)
    spoilt = ModelRunner(sharded).run(step).chunks
    hook.remove()
    assert "not numbers" in (spoilt[0].error or "")
    assert spoilt[1:] == expected[1:]


def _spoil_first_row(_head: object, _inputs: object, logits: Tensor) -> Tensor:
    logits[..., 0, -1] = -torch.nan
    return logits
