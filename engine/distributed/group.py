"""What the ranks of a model say to each other while it is loaded and run: sums of rows, and a few numbers."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class RankGroup(Protocol):
    """The ranks that hold the parts of one model. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def local_rank(self) -> int:
        """This rank's number among those of its host."""

    @property
    def host(self) -> int:
        """The number of this rank's host."""

    def sum_rows(self, rows: Tensor) -> Tensor:
        """The sum over ranks of `rows`, added in the order of the ranks, in the same tensor or another.

        Row-invariant: an element's bits depend on that element of every rank's rows alone.
        """

    def gather_numbers(self, numbers: Sequence[int]) -> list[list[int]]:
        """Every rank's `numbers`, equally many, in the order of the ranks."""

    def pulse(self) -> None:
        """Tell the others that this rank waits for its disk: it keeps them waiting and does not hang.

        The one call that waits for nobody; a rank makes it as often as it likes.
        """
