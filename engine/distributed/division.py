"""How a number of equal parts is divided over ranks: pure arithmetic. Importable without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


class CannotDivide(ValueError):
    """A model cannot be divided over so many ranks; the message names the size that forbids it."""


@dataclass(frozen=True, slots=True)
class HeadDivision:
    """The query heads that a rank computes and the key and value heads that they read: ranges of heads.

    Each key and value head that the rank holds serves equally many of its query heads.
    """

    query: range
    kv: range


def divide(count: int, size: int, unit: int = 1) -> list[range]:
    """0 .. count cut into `size` ranges that are as even as multiples of `unit` allow.

    The last of them may be shorter by what `unit` does not divide. Where there are too few units for all, they are
    made smaller. Raises CannotDivide for fewer parts than ranks.
    """
    if count < size:
        raise CannotDivide(f"{count} cannot be divided over {size} ranks")
    while -(-count // unit) < size:
        unit = max(1, unit // 2)
    num_units = -(-count // unit)
    bounds = [min(count, unit * (num_units * rank // size)) for rank in range(size + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def divide_heads(num_heads: int, num_kv_heads: int, size: int) -> list[HeadDivision]:
    """Each rank's heads. With fewer key and value heads than ranks, several ranks hold the same one.

        4 query heads, 2 kv heads, 3 ranks:   q0 q1 | q2 | q3
                                              kv0   | kv1 | kv1

    Raises CannotDivide for fewer query heads than ranks.
    """
    if num_heads < size:
        raise CannotDivide(f"{num_heads} attention heads cannot be divided over {size} ranks")
    group = num_heads // num_kv_heads
    if num_kv_heads >= size:
        return [HeadDivision(range(kv.start * group, kv.stop * group), kv) for kv in divide(num_kv_heads, size)]
    divisions = []
    for kv, ranks in enumerate(_share_out(size, num_kv_heads)):
        divisions += [
            HeadDivision(range(kv * group + part.start, kv * group + part.stop), range(kv, kv + 1))
            for part in divide(group, len(ranks))
        ]
    return divisions


def _share_out(size: int, num_kv_heads: int) -> Sequence[range]:
    """The ranks of each kv head, where there are more ranks than these."""
    return divide(size, num_kv_heads)
