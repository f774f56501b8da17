"""What is read of the rows that a step needs: all logits of some, of the others their candidates alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from distllm.engine.sampling.candidates import Candidates, candidates_in, merge_candidates


@dataclass(frozen=True, slots=True)
class NeededLogits:
    """The step's needed rows in their order: | whole rows | rows of which only candidates are read |

    Of a part of the vocabulary, `whole` has that part's columns and `best` its ids, from 0.
    """

    whole: Tensor  # float32 [num_whole, vocab]
    best: Candidates | None  # of the other rows; None where there are none

    @classmethod
    def of(cls, logits: Tensor, counts: Tensor) -> "NeededLogits":
        """Of all needed rows' logits, float32 [num_rows, vocab]. `counts` are those of StepTensors."""
        if not len(counts):
            return cls(logits, None)
        num_whole = len(logits) - len(counts)
        return cls(logits[:num_whole], candidates_in(logits[num_whole:], counts))

    @classmethod
    def merge(cls, parts: Sequence["NeededLogits"], counts: Tensor) -> "NeededLogits":
        """Of the whole vocabulary from all its parts in order; on the device of the first."""
        device = parts[0].whole.device
        whole = torch.cat([part.whole.to(device) for part in parts], dim=-1)
        first_ids = accumulate((part.whole.shape[-1] for part in parts[:-1]), initial=0)
        best = [
            part.best.shifted(first_id, device)
            for part, first_id in zip(parts, first_ids, strict=True)
            if part.best is not None
        ]
        return cls(whole, merge_candidates(best, counts) if best else None)
