"""The coordinator's books: the order of steps, what every stage holds, and what is committed.

A step's output is committed if, and only if, it is of the current epoch and every step before it is committed.
When stages are lost an epoch begins: all steps that are not committed are numbered anew and sent again, and ahead
of each goes what rebuilds the KV that it reads and some stage lacks, from the activations that the stage before
has logged, or from the tokens. A token is a function of its prefix, so what comes out is what would have come out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distllm.engine.interface import BLOCK_SIZE, BlockCopy, BlockId, SequenceChunk, StepInput, StepOutput
from distllm.engine.pipeline.protocol.block_mirror import BlockTokens, Fills, without_copies_of
from distllm.engine.pipeline.protocol.steps import NumberedStep, Work


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A step that was sent, and the step of the scheduler's that it is or is sent for.

    `uses` are those of each chunk's blocks when it was appended. Where they have changed, the sequence was aborted
    and its blocks have another owner: nobody reads what the chunk yields.
    """

    numbered: NumberedStep
    scheduled: StepInput
    uses: Sequence[NDArray[np.int64]] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """A step of the scheduler's and what it yielded."""

    step: StepInput
    output: StepOutput


class StepLog:
    """`append` and `commit` steps; `begin_epoch` when stages change.

    `max_tokens` bounds a step that rebuilds. `epoch` is the first, above any that a stage may remember.
    """

    def __init__(
        self, num_stages: int, num_blocks: int, max_tokens: int, epoch: int = 0, block_size: int = BLOCK_SIZE
    ) -> None:
        self.epoch = epoch
        self.num_stages = num_stages
        self._max_tokens = max(max_tokens, block_size)  # whole blocks, to get on
        self._tokens = BlockTokens(num_blocks, block_size)
        self._committed = Fills.none(num_stages, num_blocks, block_size)  # what every stage has at least
        self._expected = Fills.none(num_stages, num_blocks, block_size)  # once it has applied all that was sent
        self._under_way: dict[int, UnderWay] = {}
        self._outputs: dict[int, StepOutput] = {}
        self._next_number = 0
        self._next_commit = 0

    @property
    def num_committed(self) -> int:
        """How many steps of this epoch are: stages may forget what they know of those."""
        return self._next_commit

    @property
    def is_idle(self) -> bool:
        return not self._under_way

    def append(self, step: StepInput) -> list[NumberedStep]:
        """What to send for a step of the scheduler's: it, and ahead of it what rebuilds the KV that it reads."""
        lacking = [copy for copy in step.block_copies if not self._can_copy(copy.source)]
        self._tokens.note_copies(step.block_copies)
        uses = [self._tokens.uses(chunk) for chunk in step.chunks]
        sent = self._number_with_rebuilds(step, lacking, step.chunks, uses)
        self._tokens.note_tokens(step.chunks)
        return sent

    def _append_again(self, step: StepInput, uses: Sequence[NDArray[np.int64]]) -> list[NumberedStep]:
        """The same of a step that was not committed. No block is copied again: a stage may have gone on to later
        steps, and have written over what was copied."""
        live = [
            chunk
            for chunk, before in zip(step.chunks, uses, strict=True)
            if np.array_equal(before, self._tokens.uses(chunk))
        ]
        return self._number_with_rebuilds(step, step.block_copies, live, uses)

    def _number_with_rebuilds(
        self,
        step: StepInput,
        dropped: Sequence[BlockCopy],
        live: Sequence[SequenceChunk],
        uses: Sequence[NDArray[np.int64]],
    ) -> list[NumberedStep]:
        """`step` without the copies in `dropped`, after what gives all stages the prefixes of `live` chunks."""
        for copy in dropped:
            self._expected.forget(copy.destination)
        sent = without_copies_of(step, dropped) if dropped else step
        numbered = [self._number(rebuild, step) for rebuild in self._rebuilds(live, step.step_id)]
        return [*numbered, self._number((sent, 0, self.num_stages - 1), step, uses)]

    def awaited(self, epoch: int, number: int) -> NumberedStep | None:
        """The step whose output that would be; None where it is not waited for."""
        under_way = self._under_way.get(number) if epoch == self.epoch else None
        return None if under_way is None else under_way.numbered

    def commit(self, epoch: int, number: int, output: StepOutput) -> list[Commit]:
        """Take in an output that has come; the scheduler's steps that are committed by it, in order."""
        if epoch != self.epoch or number not in self._under_way:
            return []  # of another epoch, or committed before
        self._outputs[number] = output
        commits = []
        while self._next_commit in self._outputs:
            under_way = self._under_way.pop(self._next_commit)
            output = self._outputs.pop(self._next_commit)
            numbered = under_way.numbered
            self._committed.note(numbered.step, numbered.first_stage, numbered.last_stage)
            self._next_commit += 1
            if not numbered.is_rebuild:
                commits.append(Commit(under_way.scheduled, output))
        return commits

    def begin_epoch(self, held: Sequence[int | None]) -> list[NumberedStep]:
        """Go on over new stages: stage i kept the KV of the old stage `held[i]`, or begins with none.

        Returns what to send, once every stage has left the earlier epochs.
        """
        waiting = [it for it in self._under_way.values() if not it.numbered.is_rebuild]
        self.epoch += 1
        self.num_stages = len(held)
        self._committed = self._committed.moved(held)
        self._expected = self._committed.copy()
        self._under_way.clear()
        self._outputs.clear()
        self._next_number = self._next_commit = 0
        return [numbered for it in waiting for numbered in self._append_again(it.scheduled, it.uses)]

    def _number(
        self, work: Work, scheduled: StepInput, uses: Sequence[NDArray[np.int64]] | None = None
    ) -> NumberedStep:
        """Give `work` the next number: all of `scheduled`, or without `uses` what rebuilds KV for it."""
        numbered = NumberedStep(self.epoch, self._next_number, *work, is_rebuild=uses is None)
        _, first_stage, last_stage = work
        self._expected.note(numbered.step, first_stage, last_stage)
        self._under_way[self._next_number] = UnderWay(numbered, scheduled, uses or ())
        self._next_number += 1
        return numbered

    def _can_copy(self, source: BlockId) -> bool:
        """Whether every stage has all of a block; what stages would copy else is rebuilt from its tokens."""
        return self._expected.has_everywhere(source, self._tokens.num_known(source))

    def _rebuilds(self, chunks: Sequence[SequenceChunk], step_id: int) -> Iterator[Work]:
        """Steps, with their first and last stages, after which every stage has the prefix of each of `chunks`."""
        for chunk in chunks:
            while missing := self._expected.missing(chunk.block_table, chunk.num_computed_before):
                stop = min(chunk.num_computed_before, missing.start + self._max_tokens)
                tokens = self._tokens.known(chunk.block_table, missing.start, stop)
                prefix = SequenceChunk(chunk.sequence_id, tokens, missing.start, chunk.block_table, sample=None)
                yield StepInput(step_id, [prefix]), missing.first_stage, missing.last_stage
