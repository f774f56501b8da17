"""Draws from filtered distributions: looks at the best few tokens first, and at all for the rows that need it.

Which of the two settles a row has no influence on its token.
"""

from dataclasses import dataclass

from torch import Tensor

from distllm.engine.sampling.drawing import draw, draw_from_many
from distllm.engine.sampling.filtering import Filters, filter_all, filter_ranked
from distllm.engine.sampling.ranking import ranked_ids

SHORTLIST = 128
"""Best tokens to look at first."""

_MAX_SECTIONED_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Logits, by kind of device: what stays in a core's cache, what keeps a GPU busy."""


@dataclass(frozen=True, slots=True)
class FilteredRows:
    """Rows to draw from."""

    weights: Tensor  # float32 [rows, vocab]
    scaled: Tensor  # float32 [rows, vocab], logits over temperature, less the row's largest
    maxima: Tensor  # float32 [rows, blocks], of blocks of `scaled`
    randoms: Tensor  # float64 [rows], in [0, 1)
    filters: Filters

    def select(self, rows: Tensor) -> "FilteredRows":
        """Copies of some rows."""
        return FilteredRows(
            self.weights.index_select(0, rows),
            self.scaled.index_select(0, rows),
            self.maxima.index_select(0, rows),
            self.randoms.index_select(0, rows),
            self.filters.rows(rows),
        )


def draw_filtered(rows: FilteredRows) -> Tensor:
    """Token ids, int64 [rows]."""
    token_ids, is_settled = _draw_from_best(rows, SHORTLIST)
    rest = (~is_settled).nonzero().squeeze(-1)
    num_at_once = max(1, _MAX_SECTIONED_AT_ONCE[rest.device.type] // rows.weights.shape[-1])
    for start in range(0, len(rest), num_at_once):
        some = rest[start : start + num_at_once]
        token_ids[some] = _draw_from_all(rows.select(some))
    return token_ids


def _draw_from_best(rows: FilteredRows, num: int) -> tuple[Tensor, Tensor]:
    """Token ids, and whether the `num` best tokens were enough to know them: int64 [rows], bool [rows]."""
    ids = ranked_ids(rows.scaled, rows.maxima, num)
    weights = rows.weights.gather(-1, ids).double()
    is_settled = filter_ranked(weights, rows.scaled.gather(-1, ids), rows.filters)
    ids, order = ids.sort(-1)
    choice = draw(weights.gather(-1, order), rows.randoms)
    return ids.gather(-1, choice.unsqueeze(-1)).squeeze(-1), is_settled


def _draw_from_all(rows: FilteredRows) -> Tensor:
    """Overwrites `rows.weights`."""
    filter_all(rows.weights, rows.scaled, rows.filters)
    return draw_from_many(rows.weights, rows.randoms)
