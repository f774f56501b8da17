"""Outputs that a scheduler could trip over are told from those that it can take."""

import math
from dataclasses import replace

import pytest

from distllm.engine.interface import (
    BlockId,
    ChunkOutput,
    PromptLogprobSpec,
    SampleSpec,
    SequenceChunk,
    SequenceId,
    StepInput,
    StepOutput,
    TokenLogprobs,
)
from distllm.engine.pipeline.coordinator.result_check import find_fault
from distllm.engine.sampling_params import SamplingParams

VOCAB_SIZE = 50


def chunk(sequence_id: int, logprobs: int | None = None) -> SequenceChunk:
    spec = SampleSpec(SamplingParams(logprobs=logprobs), seed=0, index=0)
    return SequenceChunk(SequenceId(sequence_id), [1, 2], 0, [BlockId(sequence_id)], spec)


STEP = StepInput(
    7,
    [
        chunk(1),
        replace(chunk(2), sample=None),
        chunk(3, logprobs=2),
        replace(chunk(4), prompt_logprobs=PromptLogprobSpec(1, [2, 3])),
    ],
)
LIKELY = TokenLogprobs(9, -0.5, (9, 8), (-0.5, -1.5))
PROMPT = (TokenLogprobs(2, -1.0, (5,), (-0.1,)), TokenLogprobs(3, -math.inf, (5,), (0.0,)))
SOUND = [
    ChunkOutput(SequenceId(1), 0),
    ChunkOutput(SequenceId(2), None),
    ChunkOutput(SequenceId(3), 9, LIKELY),
    ChunkOutput(SequenceId(4), VOCAB_SIZE - 1, prompt_logprobs=PROMPT),
]


def fault_with(number: int, output: ChunkOutput) -> str | None:
    """Of a sound output but for one chunk's."""
    chunks = [output if place == number else sound for place, sound in enumerate(SOUND)]
    return find_fault(STEP, StepOutput(7, chunks), VOCAB_SIZE)


def test_what_can_be_is_taken() -> None:
    assert find_fault(STEP, StepOutput(7, SOUND), VOCAB_SIZE) is None
    assert fault_with(0, ChunkOutput(SequenceId(1), None, error="no distribution")) is None


def test_an_output_is_of_its_step_and_of_each_of_its_chunks() -> None:
    assert find_fault(STEP, StepOutput(8, SOUND), VOCAB_SIZE) == "answered step 7 as step 8"
    few = find_fault(STEP, StepOutput(7, SOUND[:3]), VOCAB_SIZE)
    assert few == "sent 3 outputs for a step of 4 chunks"
    assert find_fault(STEP, StepOutput(7, [*SOUND, SOUND[0]]), VOCAB_SIZE) is not None
    assert fault_with(0, SOUND[1]) == "sent an output of sequence 2 in the place of sequence 1"


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 1 << 62])
def test_a_token_is_of_the_vocabulary(token_id: int) -> None:
    assert fault_with(0, replace(SOUND[0], token_id=token_id)) == f"sampled token {token_id} of a vocabulary of 50"
    assert "none of a vocabulary" in str(
        fault_with(2, replace(SOUND[2], logprobs=replace(LIKELY, top_ids=(9, token_id))))
    )


def test_tokens_come_where_they_are_due_and_nowhere_else() -> None:
    assert fault_with(0, replace(SOUND[0], token_id=None)) == "sampled no token where one was due"
    assert fault_with(1, replace(SOUND[1], token_id=1)) == "sampled a token where none was due"
    assert fault_with(0, replace(SOUND[0], error="none")) == "sent both a token and why there is none"


@pytest.mark.parametrize("logprob", [math.nan, math.inf, 1.0])
def test_a_log_probability_is_one(logprob: float) -> None:
    fault = "sent a log-probability that is none"
    assert fault_with(2, replace(SOUND[2], logprobs=replace(LIKELY, logprob=logprob))) == fault
    assert fault_with(2, replace(SOUND[2], logprobs=replace(LIKELY, top_logprobs=(-0.5, logprob)))) == fault
    damaged = (PROMPT[0], replace(PROMPT[1], logprob=logprob))
    assert fault_with(3, replace(SOUND[3], prompt_logprobs=damaged)) == fault


def test_log_probabilities_are_those_that_were_asked_for() -> None:
    assert "where none were due" in str(fault_with(0, replace(SOUND[0], logprobs=replace(LIKELY, token_id=0))))
    assert "or none where they were" in str(fault_with(2, replace(SOUND[2], logprobs=None)))
    assert "another token" in str(fault_with(2, replace(SOUND[2], logprobs=replace(LIKELY, token_id=8))))
    few = replace(LIKELY, top_ids=(9,), top_logprobs=(-0.5,))
    assert fault_with(2, replace(SOUND[2], logprobs=few)) == "sent 1 of the most likely tokens where 2 were due"
    assert "other prompt tokens" in str(fault_with(3, replace(SOUND[3], prompt_logprobs=PROMPT[::-1])))
    assert "other prompt tokens" in str(fault_with(3, replace(SOUND[3], prompt_logprobs=())))
