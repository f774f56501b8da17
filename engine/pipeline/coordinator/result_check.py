"""Whether an output can be one of the step that it is sent for. Pure.

A last stage is another machine: what it sends must not reach the scheduler, which trusts outputs, unless it can be.
"""

from collections.abc import Sequence

from distllm.engine.interface import ChunkOutput, SequenceChunk, StepInput, StepOutput, TokenLogprobs

_MAX_LOGPROB = 0.01
"""0 but for rounding."""


def find_fault(step: StepInput, output: StepOutput, vocab_size: int) -> str | None:
    """What is wrong with the output, in words that go after "it"; None where nothing is."""
    if output.step_id != step.step_id:
        return f"answered step {step.step_id} as step {output.step_id}"
    if len(output.chunks) != len(step.chunks):
        return f"sent {len(output.chunks)} outputs for a step of {len(step.chunks)} chunks"
    faults = (
        _chunk_fault(chunk, result, vocab_size) for chunk, result in zip(step.chunks, output.chunks, strict=True)
    )
    return next((fault for fault in faults if fault is not None), None)


def _chunk_fault(chunk: SequenceChunk, result: ChunkOutput, vocab_size: int) -> str | None:
    if result.sequence_id != chunk.sequence_id:
        return f"sent an output of sequence {result.sequence_id} in the place of sequence {chunk.sequence_id}"
    if result.error is not None:
        return None if result.token_id is None else "sent both a token and why there is none"
    spec, targets = chunk.sample, chunk.prompt_logprobs
    if (result.token_id is None) is not (spec is None):
        return "sampled no token where one was due" if spec is not None else "sampled a token where none was due"
    if result.token_id is not None and not 0 <= result.token_id < vocab_size:
        return f"sampled token {result.token_id} of a vocabulary of {vocab_size}"
    num_top = None if spec is None else spec.params.logprobs
    if (result.logprobs is None) is not (num_top is None):
        return "sent log-probabilities where none were due, or none where they were"
    if result.logprobs is not None and result.logprobs.token_id != result.token_id:
        return "sent the log-probability of another token than it sampled"
    target_ids = [] if targets is None else list(targets.target_ids)
    if [scored.token_id for scored in result.prompt_logprobs] != target_ids:
        return "sent log-probabilities of other prompt tokens than were asked for"
    wanted = [(result.logprobs, num_top or 0)] if result.logprobs is not None else []
    wanted += [(scored, 0 if targets is None else targets.num_top) for scored in result.prompt_logprobs]
    return next((fault for each in wanted if (fault := _logprob_fault(*each, vocab_size)) is not None), None)


def _logprob_fault(scored: TokenLogprobs, num_top: int, vocab_size: int) -> str | None:
    num_due = min(num_top, vocab_size)
    if not len(scored.top_ids) == len(scored.top_logprobs) == num_due:
        return f"sent {len(scored.top_logprobs)} of the most likely tokens where {num_due} were due"
    if not _are_tokens(scored.top_ids, vocab_size):
        return f"sent a likely token that is none of a vocabulary of {vocab_size}"
    if not all(logprob <= _MAX_LOGPROB for logprob in (scored.logprob, *scored.top_logprobs)):  # nor is NaN
        return "sent a log-probability that is none"
    return None


def _are_tokens(token_ids: Sequence[int], vocab_size: int) -> bool:
    return all(0 <= token_id < vocab_size for token_id in token_ids)
