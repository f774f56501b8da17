"""The pool of blocks: counts, prefixes, copy on write."""

import pytest

from distllm.engine.interface import BlockCopy, BlockId
from distllm.scheduler.block_manager import BlockManager

SIZE = 4


def fill(blocks: BlockManager, token_ids: list[int], salt: str = "") -> list[BlockId]:
    """A table of its own with the KV of these tokens."""
    table: list[BlockId] = []
    blocks.extend(table, len(token_ids), borrows_last=False)
    blocks.note_computed(table, token_ids, salt, 0, len(token_ids))
    return table


def test_blocks_are_used_then_cached_then_used_again() -> None:
    blocks = BlockManager(4, SIZE)
    table = fill(blocks, list(range(10)))
    assert (blocks.num_used, blocks.num_cached, blocks.num_free) == (3, 0, 1)
    blocks.release(table)
    assert (blocks.num_used, blocks.num_cached, blocks.num_free) == (0, 2, 2)
    shared = blocks.share(blocks.find_prefix(list(range(10)), "", 9))
    assert shared == table[:2]
    assert (blocks.num_used, blocks.num_cached, blocks.num_free) == (2, 0, 2)
    blocks.check_integrity([shared])


def test_only_full_blocks_within_the_limit_are_found() -> None:
    blocks = BlockManager(8, SIZE)
    fill(blocks, list(range(10)))
    assert len(blocks.find_prefix(list(range(10)), "", 10)) == 2
    assert len(blocks.find_prefix(list(range(10)), "", 7)) == 1
    assert len(blocks.find_prefix(list(range(7)), "", 7)) == 1


def test_equal_tokens_after_another_prefix_are_not_found() -> None:
    blocks = BlockManager(8, SIZE)
    fill(blocks, [1, 1, 1, 1, 5, 6, 7, 8])
    fill(blocks, [2, 2, 2, 2, 0, 0, 0, 0])
    assert len(blocks.find_prefix([2, 2, 2, 2, 5, 6, 7, 8], "", 8)) == 1
    assert blocks.find_prefix([5, 6, 7, 8], "", 4) == []


def test_tokens_whose_python_hashes_are_equal_are_told_apart() -> None:
    blocks = BlockManager(4, SIZE)
    fill(blocks, [0] * SIZE)
    assert hash((0,) * SIZE) == hash((2**61 - 1,) * SIZE)
    assert blocks.find_prefix([2**61 - 1] * SIZE, "", SIZE) == []


def test_a_salt_shares_with_the_same_salt_only() -> None:
    blocks = BlockManager(8, SIZE)
    table = fill(blocks, list(range(8)), salt="alice")
    assert blocks.find_prefix(list(range(8)), "alice", 8) == table
    assert blocks.find_prefix(list(range(8)), "bob", 8) == []
    assert blocks.find_prefix(list(range(8)), "", 8) == []


def test_the_least_recently_used_blocks_are_given_away_first() -> None:
    blocks = BlockManager(4, SIZE)
    old, new = fill(blocks, [1] * 8), fill(blocks, [2] * 8)
    blocks.release(old)
    blocks.release(new)
    blocks.release(blocks.share(blocks.find_prefix([1] * 8, "", 8)))
    table = fill(blocks, [3] * 8)
    assert blocks.find_prefix([2] * 8, "", 8) == []
    assert blocks.find_prefix([1] * 8, "", 8) == old
    blocks.check_integrity([table])


def test_the_end_of_a_prefix_is_given_away_before_its_beginning() -> None:
    blocks = BlockManager(3, SIZE)
    table = fill(blocks, list(range(12)))
    blocks.release(table)
    fill(blocks, [99])
    assert blocks.find_prefix(list(range(12)), "", 12) == table[:2]


def test_a_prefix_computed_twice_is_found_once_and_continued_by_either() -> None:
    blocks = BlockManager(8, SIZE)
    first, second = fill(blocks, list(range(4))), fill(blocks, list(range(8)))
    assert blocks.find_prefix(list(range(8)), "", 8) == [first[0], second[1]]
    blocks.release(second)
    blocks.check_integrity([first])
    assert blocks.num_cached == 1, "the copy of the first block can be found under the other alone"


def test_a_fork_copies_its_last_block_at_its_first_write() -> None:
    blocks = BlockManager(8, SIZE)
    table = fill(blocks, list(range(6)))
    fork = blocks.fork(table, 5)
    assert fork == table
    assert blocks.room_from(fork, 5, borrows_last=True) == (2 + 5) * SIZE - 5
    copy = blocks.extend(fork, 6, borrows_last=True)
    assert copy == BlockCopy(table[1], fork[1])
    assert fork[0] == table[0]
    assert fork[1] != table[1]
    blocks.check_integrity([table, fork])


def test_the_last_borrower_writes_in_place_and_the_block_is_found_no_longer() -> None:
    blocks = BlockManager(2, SIZE)
    table = fill(blocks, list(range(8)))
    fork = blocks.fork(table, 7)
    assert blocks.room_from(fork, 7, borrows_last=True) == 0, "no block is left to copy to"
    blocks.release(table)
    assert blocks.room_from(fork, 7, borrows_last=True) == 1
    assert blocks.extend(fork, 8, borrows_last=True) is None
    assert blocks.find_prefix(list(range(8)), "", 8) == fork[:1]
    blocks.check_integrity([fork])


def test_without_prefix_caching_released_blocks_are_free() -> None:
    blocks = BlockManager(4, SIZE, enable_prefix_caching=False)
    blocks.release(fill(blocks, list(range(8))))
    assert (blocks.num_free, blocks.num_cached) == (4, 0)
    assert blocks.find_prefix(list(range(8)), "", 8) == []
    blocks.check_integrity([])


def test_check_integrity_notices_a_count_that_no_table_explains() -> None:
    blocks = BlockManager(4, SIZE)
    table = fill(blocks, list(range(8)))
    blocks.check_integrity([table])
    with pytest.raises(AssertionError):
        blocks.check_integrity([])
    with pytest.raises(AssertionError):
        blocks.check_integrity([table, table])
