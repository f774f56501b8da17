"""Finds the block that holds given tokens after a given prefix. Knows content, not who uses a block."""

import struct
from collections.abc import Iterable, Sequence
from itertools import count

from distllm.engine.interface import BlockId

_ROOT = 0


class PrefixIndex:
    """A trie of full blocks, kept as one hash table.

        key of a block = (content id of the block before it, its tokens [, the salt, in the first block])

    A content id stands for a block's tokens and all tokens before them and is never given out twice, so equal keys
    mean equal prefixes: the table finds a key by its hash and compares it in full. Keys are bytes, which Python
    hashes with a secret (SipHash), so no choice of tokens makes look-ups slow. A block computed twice has one
    findable holder; the other copy knows its content id only.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._pack = struct.Struct(f"<{block_size + 1}q").pack
        self._next_content_id = count(_ROOT + 1)
        self._holders: dict[bytes, BlockId] = {}
        self._keys: list[bytes | None] = [None] * num_blocks  # of holders
        self._content_ids: list[int | None] = [None] * num_blocks  # of holders and their copies

    def __contains__(self, block: BlockId) -> bool:
        """Whether the block can be found."""
        return self._keys[block] is not None

    def __len__(self) -> int:
        return len(self._holders)

    def match(self, token_ids: Sequence[int], salt: str, max_blocks: int) -> list[BlockId]:
        """The longest run of findable blocks that hold the first tokens, at most `max_blocks`."""
        blocks: list[BlockId] = []
        content_id: int | None = _ROOT
        for index in range(max_blocks):
            assert content_id is not None
            block = self._holders.get(self._key(content_id, token_ids, index, salt))
            if block is None:
                break
            blocks.append(block)
            content_id = self._content_ids[block]
        return blocks

    def insert(self, block_table: Sequence[BlockId], index: int, token_ids: Sequence[int], salt: str) -> None:
        """Make block `index` of the table findable; the blocks before it have been inserted."""
        content_id = self._content_ids[block_table[index - 1]] if index else _ROOT
        assert content_id is not None
        key = self._key(content_id, token_ids, index, salt)
        block = block_table[index]
        holder = self._holders.setdefault(key, block)
        if holder == block:
            self._keys[block] = key
            self._content_ids[block] = next(self._next_content_id)
        else:
            self._content_ids[block] = self._content_ids[holder]

    def forget(self, block: BlockId) -> None:
        """The block's content is about to change."""
        key = self._keys[block]
        if key is not None:
            del self._holders[key]
        self._keys[block] = self._content_ids[block] = None

    def check_integrity(self, blocks: Iterable[BlockId]) -> None:
        """Raises AssertionError unless keys and holders agree over all `blocks`."""
        keys = {self._keys[block]: block for block in blocks if block in self}
        assert keys == self._holders
        assert all(self._content_ids[block] is not None for block in keys.values())

    def _key(self, content_id: int, token_ids: Sequence[int], index: int, salt: str) -> bytes:
        start = index * self._block_size
        key = self._pack(content_id, *token_ids[start : start + self._block_size])
        return key if index or not salt else key + salt.encode(errors="surrogatepass")
