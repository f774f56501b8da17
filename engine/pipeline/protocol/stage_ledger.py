"""A stage's books: which step it applies next.

A stage is a log of the steps that it has applied in an epoch. A step is applied if, and only if, its epoch is the
stage's and its number is the length of that log: so each is applied once, in order, however often and in whatever
order it comes.
"""

from enum import Enum, auto
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Verdict(Enum):
    """What becomes of a step that has come. All but NOT_YET and FULL acknowledge it: it need not be sent again."""

    ACCEPTED = auto()  # applied when its turn comes
    KNOWN = auto()  # it came before
    STALE = auto()  # of an epoch that has ended
    NOT_YET = auto()  # of an epoch that this stage has not been told of
    FULL = auto()  # too far ahead of its turn


class StageLedger(Generic[Item]):
    """Takes steps in any order, gives them out in theirs.

    `max_held` bounds those that wait for their turn, if they come from a sender that repeats what is not accepted.
    """

    def __init__(self, max_held: int = 256) -> None:
        self.epoch = -1
        self.length = 0
        self._held: dict[int, Item] = {}
        self._max_held = max_held

    def begin_epoch(self, epoch: int) -> bool:
        """Leave all earlier epochs behind. False where that was done before, or a later one has begun."""
        if epoch <= self.epoch:
            return False
        self.epoch, self.length = epoch, 0
        self._held.clear()
        return True

    def offer(self, epoch: int, number: int, item: Item, *, is_repeated: bool = True) -> Verdict:
        """Take a step that has come. The coordinator's own come once, however many are needed for a rebuild."""
        if epoch != self.epoch:
            return Verdict.STALE if epoch < self.epoch else Verdict.NOT_YET
        if number < self.length or number in self._held:
            return Verdict.KNOWN
        if is_repeated and number >= self.length + self._max_held:
            return Verdict.FULL
        self._held[number] = item
        return Verdict.ACCEPTED

    def take(self) -> Item | None:
        """The step whose turn it is, which counts as applied from now on; None until it comes."""
        item = self._held.pop(self.length, None)
        if item is not None:
            self.length += 1
        return item
