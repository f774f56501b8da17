"""A step while it is being put together."""

from collections.abc import Iterator

from distllm.engine.interface import BlockCopy, SequenceChunk, StepInput


class StepDraft:
    """Chunks within a token budget, and the block copies that they need.

    At most `max_chunks` of them go on with a sequence, and as many begin one: so every step gets its share of both.
    """

    def __init__(self, token_budget: int, max_chunks: int) -> None:
        self.num_tokens_left = token_budget
        self._num_left = {True: max_chunks, False: max_chunks}
        self._chunks: list[SequenceChunk] = []
        self._block_copies: list[BlockCopy] = []

    @property
    def is_full(self) -> bool:
        return self.num_tokens_left == 0 or not any(self._num_left.values())

    def has_room(self, *, is_prompt: bool) -> bool:
        """Whether a chunk of a prompt, or of another kind, may be added."""
        return self.num_tokens_left > 0 and self._num_left[is_prompt] > 0

    def add(self, chunk: SequenceChunk, copy: BlockCopy | None, *, is_prompt: bool) -> None:
        self.num_tokens_left -= len(chunk.token_ids)
        self._num_left[is_prompt] -= 1
        self._chunks.append(chunk)
        if copy is not None:
            self._block_copies.append(copy)

    def seal(self, step_ids: Iterator[int]) -> StepInput | None:
        """The step under the next id, None if nobody got tokens."""
        return StepInput(next(step_ids), self._chunks, self._block_copies) if self._chunks else None
