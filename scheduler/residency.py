"""Which sequences hold KV blocks: who runs, who waits, who makes way. Knows nothing of steps or outputs."""

from collections.abc import Collection, Iterator

from distllm.engine.interface import BlockCopy, BlockId
from distllm.scheduler.block_manager import BlockManager
from distllm.scheduler.queue import SequenceQueue
from distllm.scheduler.sequence import Sequence, Status


class Residency:
    """Running sequences have one of `max_num_seqs` seats and a block table; waiting ones have neither.

    A sequence is preempted only for one of smaller rank, and never while a step that holds a chunk of it is under
    way. So the sequence of smallest rank always gets its blocks in the end, and no two preempt each other in turn.
    """

    def __init__(self, blocks: BlockManager, max_num_seqs: int) -> None:
        self.blocks = blocks
        self.num_preemptions = 0
        self._max_num_seqs = max_num_seqs
        self._running = SequenceQueue()
        self._waiting = SequenceQueue()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def in_order(self) -> Iterator[Sequence]:
        """Who gets tokens first: by priority; then the running before the waiting; then first come first served.

        Nobody overtakes a waiting sequence that was offered and not admitted, else it might starve.
        """
        can_admit = True
        for sequence in tuple(self._running):
            while can_admit and self._waiting and self._waiting.head.priority < sequence.priority:
                head = self._waiting.head
                yield head
                can_admit = head.is_running
            if sequence.is_running:  # else it was preempted on the way
                yield sequence
        while can_admit and self._waiting:
            head = self._waiting.head
            yield head
            can_admit = head.is_running

    def wait(self, sequence: Sequence) -> None:
        sequence.stop(Status.WAITING)
        self._waiting.add(sequence)

    def admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, on the prefix of it that is cached, if there is a seat and blocks for it.

        Running sequences of a lower priority make way, unless even that would not do.
        """
        victims = [other for other in reversed(self._running) if _may_preempt(other, sequence.priority)]
        if self.num_running - len(victims) >= self._max_num_seqs:
            return False
        if not victims and self._num_lacking_in_all() >= self.blocks.num_available:
            return False  # without looking for its prefix, step after step: it needs one block more than that
        prefix = self._find_prefix(sequence)
        while not self._fits(sequence, prefix):
            if not victims or not self._fits(sequence, prefix, without=victims):
                return False
            self._preempt(victims.pop(0))
        self._waiting.remove(sequence)
        self._seat(sequence, self.blocks.share(prefix), len(prefix) * self.blocks.block_size)
        return True

    def fork(self, leader: Sequence, sequence: Sequence) -> None:
        """Let a sequence run on the prompt that its leader has computed; without a seat, it waits.

        Its last known token is left to compute, for the logits that follow it.
        """
        if self.num_running >= self._max_num_seqs:
            self.wait(sequence)
            return
        num_tokens = min(leader.request.num_prompt_tokens, len(sequence.token_ids) - 1)
        self._seat(sequence, self.blocks.fork(leader.block_table, num_tokens), num_tokens)
        sequence.borrows_last_block = num_tokens % self.blocks.block_size != 0

    def grow(self, sequence: Sequence, num_wanted: int) -> tuple[int, BlockCopy | None]:
        """Blocks for a running sequence's next tokens: how many of `num_wanted` can be written, after which copy.

        A chunk shrinks to the blocks at hand. Only where these do not hold one token is another preempted.
        """
        start, table, borrows = sequence.num_scheduled_tokens, sequence.block_table, sequence.borrows_last_block
        while (room := self.blocks.room_from(table, start, borrows)) == 0:
            victim = self._find_victim(sequence)
            if victim is None:
                return 0, None
            self._preempt(victim)
        num_tokens = min(num_wanted, room)
        sequence.borrows_last_block = False
        return num_tokens, self.blocks.extend(table, start + num_tokens, borrows)

    def note_computed(self, sequence: Sequence, num_tokens: int) -> None:
        """The KV of the next `num_tokens` scheduled tokens exists now."""
        start = sequence.num_computed_tokens
        sequence.num_computed_tokens = end = start + num_tokens
        salt = sequence.request.cache_salt
        self.blocks.note_computed(sequence.block_table, sequence.token_ids, salt, start, end)

    def leave(self, sequence: Sequence) -> None:
        """Give up seat and blocks, or the place in the queue."""
        if sequence.is_running:
            self._running.remove(sequence)
            self.blocks.release(sequence.block_table)
        elif sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        sequence.stop(Status.ENDED)

    def check_integrity(self, sequences: Collection[Sequence]) -> None:
        """Raises AssertionError unless `sequences`, all that live, agree with queues and blocks. O(pool)."""
        self.blocks.check_integrity(sequence.block_table for sequence in sequences)
        assert self.num_running <= self._max_num_seqs
        for queue, status in ((self._running, Status.RUNNING), (self._waiting, Status.WAITING)):
            in_status = sorted(sequence.rank for sequence in sequences if sequence.status is status)
            assert [sequence.rank for sequence in queue] == in_status
        for sequence in sequences:
            assert sequence.is_running or not sequence.block_table
            assert sequence.num_computed_tokens <= sequence.num_scheduled_tokens <= len(sequence.token_ids)
            assert sequence.num_scheduled_tokens <= len(sequence.block_table) * self.blocks.block_size

    def _seat(self, sequence: Sequence, block_table: list[BlockId], num_tokens: int) -> None:
        sequence.start(block_table, num_tokens)
        self._running.add(sequence)

    def _find_prefix(self, sequence: Sequence) -> list[BlockId]:
        max_tokens = sequence.max_prefix_tokens
        return self.blocks.find_prefix(sequence.token_ids, sequence.request.cache_salt, max_tokens)

    def _fits(self, sequence: Sequence, prefix: list[BlockId], without: Collection[Sequence] = ()) -> bool:
        """Whether there is a seat, and blocks for all known tokens beside those that running sequences lack.

        `without`: if those sequences were preempted. An estimate from above then, as they may share blocks.
        """
        if self.num_running - len(without) >= self._max_num_seqs:
            return False
        num_needed = self.blocks.blocks_for(len(sequence.token_ids)) - len(prefix)
        num_needed += self.blocks.num_cached_among(prefix)
        num_lacking = self._num_lacking_in_all(without)
        num_yielded = sum(len(other.block_table) for other in without)
        return num_needed + num_lacking <= self.blocks.num_available + num_yielded

    def _num_lacking_in_all(self, without: Collection[Sequence] = ()) -> int:
        return sum(self._num_lacking(other) for other in self._running if other not in without)

    def _num_lacking(self, sequence: Sequence) -> int:
        """Blocks that a running sequence will take to compute its known tokens, and one to go on."""
        return max(0, self.blocks.blocks_for(len(sequence.token_ids)) + 1 - len(sequence.block_table))

    def _find_victim(self, sequence: Sequence) -> Sequence | None:
        """The last running sequence in order, behind the given one, of which nothing is under way."""
        behind = (other for other in reversed(self._running) if other.rank > sequence.rank)
        return next((other for other in behind if not other.is_in_flight), None)

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self.blocks.release(sequence.block_table)
        self.wait(sequence)
        self.num_preemptions += 1


def _may_preempt(victim: Sequence, priority: int) -> bool:
    return victim.priority > priority and not victim.is_in_flight
