"""Owns the pool of KV blocks: who holds a block, which are free, which are worth keeping. Knows ids, no memory."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from distllm.engine.interface import BlockCopy, BlockId
from distllm.scheduler.prefix_index import PrefixIndex


class BlockManager:
    """Every block is used (in some block table), cached (in none, but its tokens can be found) or free.

    Tables are lists that their sequences own and that this class extends. Every operation costs O(1) a block.
    Cached blocks are given away, least recently used first, when no free one is left.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_refs = [0] * num_blocks
        self._free = [BlockId(block) for block in reversed(range(num_blocks))]
        self._cached: OrderedDict[BlockId, None] = OrderedDict()  # least recently used first
        self._index = PrefixIndex(num_blocks, block_size) if enable_prefix_caching else None

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, token_ids: Sequence[int], salt: str, max_tokens: int) -> list[BlockId]:
        """Blocks that hold the KV of the first tokens, `max_tokens` at most; `share` them to keep them."""
        if self._index is None:
            return []
        return self._index.match(token_ids, salt, max_tokens // self.block_size)

    def num_cached_among(self, blocks: Iterable[BlockId]) -> int:
        """How many of the blocks nobody holds: sharing them makes so many fewer available."""
        return sum(self._num_refs[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[BlockId]) -> list[BlockId]:
        """A new table of blocks whose tokens are computed already."""
        table = list(blocks)
        for block in table:
            if self._num_refs[block] == 0:
                del self._cached[block]
            self._num_refs[block] += 1
        return table

    def fork(self, block_table: Sequence[BlockId], num_tokens: int) -> list[BlockId]:
        """A table that shares the first `num_tokens` tokens; its last block is borrowed if they do not fill it."""
        return self.share(block_table[: self.blocks_for(num_tokens)])

    def room_from(self, block_table: Sequence[BlockId], position: int, borrows_last: bool) -> int:
        """How many tokens `extend` could take from `position` on, which is in the last block or at its end."""
        num_spare = self.num_available - (borrows_last and self._num_refs[block_table[-1]] > 1)
        return (len(block_table) + num_spare) * self.block_size - position if num_spare >= 0 else 0

    def extend(self, block_table: list[BlockId], end: int, borrows_last: bool) -> BlockCopy | None:
        """Make the table cover positions up to `end`, as far as `room_from` said, and its last block writable.

        A borrowed block is copied on this first write, so whoever computed it goes on in place and every table
        that an executor has seen is append-only. The last one to borrow it needs no copy.
        """
        copy = self._own_last(block_table) if borrows_last else None
        while len(block_table) * self.block_size < end:
            block_table.append(self._allocate())
        return copy

    def release(self, block_table: Sequence[BlockId]) -> None:
        """Give up every block of a table. The deepest are forgotten first: a prefix outlives what follows it."""
        for block in reversed(block_table):
            self._release(block)

    def note_computed(
        self, block_table: Sequence[BlockId], token_ids: Sequence[int], salt: str, start: int, end: int
    ) -> None:
        """The KV of positions [`start`, `end`) exists now: the blocks that it filled can be found."""
        if self._index is None:
            return
        for index in range(start // self.block_size, end // self.block_size):
            self._index.insert(block_table, index, token_ids, salt)

    def check_integrity(self, block_tables: Iterable[Sequence[BlockId]]) -> None:
        """Raises AssertionError unless free + cached + used = all and counts equal what tables hold. O(pool)."""
        held = Counter(block for table in block_tables for block in table)
        assert self._num_refs == [held[BlockId(block)] for block in range(self.num_blocks)]
        unheld = [*self._free, *self._cached]
        assert len(set(unheld)) == len(unheld), "a block is listed twice"
        assert sorted([*unheld, *held]) == list(range(self.num_blocks)), "free + cached + used = all"
        if self._index is None:
            assert not self._cached
            return
        self._index.check_integrity(BlockId(block) for block in range(self.num_blocks))
        assert all(block in self._index for block in self._cached)
        assert not any(block in self._index for block in self._free)

    def _own_last(self, block_table: list[BlockId]) -> BlockCopy | None:
        source = block_table[-1]
        if self._num_refs[source] == 1:
            if self._index is not None:
                self._index.forget(source)
            return None
        block_table[-1] = self._allocate()
        self._release(source)
        return BlockCopy(source, block_table[-1])

    def _allocate(self) -> BlockId:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            assert self._index is not None
            self._index.forget(block)
        self._num_refs[block] = 1
        return block

    def _release(self, block: BlockId) -> None:
        self._num_refs[block] -= 1
        if self._num_refs[block] > 0:
            return
        if self._index is not None and block in self._index:
            self._cached[block] = None
        else:
            self._free.append(block)
