"""Rows of equal length, filled with whole documents."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import torch

TokenizedDocument = Sequence[tuple[int, bool]]
"""Token ids, each with whether it is learned."""

IGNORED: Final = -100
"""The target of a token that is not learned, as torch's cross entropy has it."""

_NUM_WAITING: Final = 16


def pack(
    documents: Iterator[TokenizedDocument], num_rows: int, row_length: int, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets, both int64 [num_rows, row_length]; targets[:, i] follows token_ids[:, i].

    A row begins with the document that has waited longest and goes on with the longest that still fits; what is
    left of it is padding, and so are rows for which no document is left. Documents longer than a row are passed
    over.
    """
    fitting = (document for document in documents if len(document) <= row_length)
    waiting: list[TokenizedDocument] = list(islice(fitting, _NUM_WAITING))
    token_ids = torch.full((num_rows, row_length), pad_id)
    targets = torch.full((num_rows, row_length), IGNORED)
    for row in range(num_rows):
        chosen: TokenizedDocument | None = waiting[0] if waiting else None
        end = 0
        while chosen is not None:
            waiting.remove(chosen)
            waiting += islice(fitting, 1)
            start, end = end, end + len(chosen)
            token_ids[row, start:end] = torch.tensor([token_id for token_id, _ in chosen])
            learned = torch.tensor([token_id if is_learned else IGNORED for token_id, is_learned in chosen])
            # The first token of a row is nobody's target.
            targets[row, max(start - 1, 0) : end - 1] = learned[start == 0 :]
            chosen = _longest_within(row_length - end, waiting)
    return token_ids, targets


def _longest_within(room: int, waiting: Sequence[TokenizedDocument]) -> TokenizedDocument | None:
    return max((document for document in waiting if len(document) <= room), key=len, default=None)
