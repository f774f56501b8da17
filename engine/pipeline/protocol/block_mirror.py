"""What the coordinator knows of the KV on every stage: the tokens of each block, and how far each stage has them.

A stage that is replaced has none. What it needs is rebuilt when a step reads it, from the tokens kept here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distllm.engine.interface import BlockCopy, BlockId, SequenceChunk, StepInput


@dataclass(frozen=True, slots=True)
class Missing:
    """Where a chunk's prefix begins to be missing, in tokens, and the first and the last stage that lack some."""

    start: int
    first_stage: int
    last_stage: int


class Fills:
    """How many slots of every block each stage has filled: uint8 [num_stages, num_blocks]."""

    def __init__(self, filled: NDArray[np.uint8], block_size: int) -> None:
        self._filled = filled
        self._block_size = block_size

    @classmethod
    def none(cls, num_stages: int, num_blocks: int, block_size: int) -> "Fills":
        return cls(np.zeros((num_stages, num_blocks), np.uint8), block_size)

    def copy(self) -> "Fills":
        return Fills(self._filled.copy(), self._block_size)

    def moved(self, held: Sequence[int | None]) -> "Fills":
        """Those of new stages: stage i has what the old stage `held[i]` had, or nothing."""
        moved = Fills.none(len(held), self._filled.shape[1], self._block_size)
        for stage, old in enumerate(held):
            if old is not None:
                moved._filled[stage] = self._filled[old]
        return moved

    def missing(self, block_table: Sequence[BlockId], num_tokens: int) -> Missing | None:
        """What stages lack of the first `num_tokens` of a sequence."""
        num_blocks = -(-num_tokens // self._block_size)
        if num_blocks == 0:
            return None
        needed = np.full(num_blocks, self._block_size, np.uint8)
        needed[-1] = num_tokens - (num_blocks - 1) * self._block_size
        lacks = self._filled[:, np.asarray(block_table[:num_blocks])] < needed
        if not lacks.any():
            return None
        first_block = int(lacks.any(axis=0).argmax())
        stages = np.flatnonzero(lacks.any(axis=1))
        return Missing(first_block * self._block_size, int(stages[0]), int(stages[-1]))

    def has_everywhere(self, block: BlockId, num_slots: int) -> bool:
        return bool((self._filled[:, block] >= num_slots).all())

    def note(self, step: StepInput, first_stage: int, last_stage: int) -> None:
        """Stages `first_stage` to `last_stage` have applied `step`."""
        stages = slice(first_stage, last_stage + 1)
        for copy in step.block_copies:
            self._filled[stages, copy.destination] = self._filled[stages, copy.source]
        for chunk in step.chunks:
            for block, _, end in touched(chunk, self._block_size):
                self._filled[stages, block] = end

    def forget(self, block: BlockId) -> None:
        """No stage has anything of `block`."""
        self._filled[:, block] = 0


class BlockTokens:
    """The token of every slot of every block: int64 [num_blocks, block_size]; -1 where there is none.

    A block's use grows whenever its content begins anew.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._tokens: NDArray[np.int64] = np.full((num_blocks, block_size), -1, np.int64)
        self._uses: NDArray[np.int64] = np.zeros(num_blocks, np.int64)

    def note_copies(self, copies: Sequence[BlockCopy]) -> None:
        for copy in copies:
            self._tokens[copy.destination] = self._tokens[copy.source]
            self._uses[copy.destination] += 1

    def note_tokens(self, chunks: Sequence[SequenceChunk]) -> None:
        for chunk in chunks:
            taken = 0
            for block, begin, end in touched(chunk, self._block_size):
                if begin == 0:
                    self._tokens[block] = -1  # what an earlier owner left
                    self._uses[block] += 1
                self._tokens[block, begin:end] = chunk.token_ids[taken : taken + end - begin]
                taken += end - begin

    def known(self, block_table: Sequence[BlockId], start: int, stop: int) -> list[int]:
        """The tokens of a sequence's positions from `start` up to `stop`."""
        blocks = self._tokens[np.asarray(block_table[: -(-stop // self._block_size)])]
        tokens: list[int] = blocks.reshape(-1)[start:stop].tolist()
        return tokens

    def uses(self, chunk: SequenceChunk) -> NDArray[np.int64]:
        """Of the blocks of what a chunk's sequence has computed before: int64 [number of them]."""
        num_blocks = -(-chunk.num_computed_before // self._block_size)
        return self._uses[np.asarray(chunk.block_table[:num_blocks], np.int64)]

    def num_known(self, block: BlockId) -> int:
        return int((self._tokens[block] >= 0).sum())


def touched(chunk: SequenceChunk, block_size: int) -> Iterator[tuple[BlockId, int, int]]:
    """The blocks that a chunk writes, each with its first slot and the one after its last."""
    position, end = chunk.num_computed_before, chunk.num_computed_before + len(chunk.token_ids)
    while position < end:
        index, begin = divmod(position, block_size)
        stop = min(block_size, begin + end - position)
        yield chunk.block_table[index], begin, stop
        position += stop - begin


def without_copies_of(step: StepInput, dropped: Sequence[BlockCopy]) -> StepInput:
    """`step` without some of its copies."""
    kept = [copy for copy in step.block_copies if copy not in dropped]
    return StepInput(step.step_id, step.chunks, kept)
