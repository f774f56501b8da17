"""A step while it is being put together."""

from collections.abc import Iterator

from distllm.engine.interface import BlockCopy, SequenceChunk, StepInput


class StepDraft:
    """Chunks within a token budget, at most `max_chunks`, and the block copies that they need."""

    def __init__(self, token_budget: int, max_chunks: int) -> None:
        self.num_tokens_left = token_budget
        self._max_chunks = max_chunks
        self._chunks: list[SequenceChunk] = []
        self._block_copies: list[BlockCopy] = []

    @property
    def is_full(self) -> bool:
        return self.num_tokens_left == 0 or len(self._chunks) == self._max_chunks

    def add(self, chunk: SequenceChunk, copy: BlockCopy | None) -> None:
        self.num_tokens_left -= len(chunk.token_ids)
        self._chunks.append(chunk)
        if copy is not None:
            self._block_copies.append(copy)

    def seal(self, step_ids: Iterator[int]) -> StepInput | None:
        """The step under the next id, None if nobody got tokens."""
        return StepInput(next(step_ids), self._chunks, self._block_copies) if self._chunks else None
