"""A step's tensors and what the ranks make of them, in shared memory: nothing is pickled, nothing allocated.

header | input_ids, position_ids, slot_mapping | needed_rows, num_candidates | copies
query_starts, num_computed, block_tables | activations
whole rows, values of candidates, their ids of rank 0 | of rank 1 | ...
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from distllm.engine.attention.interface import AttentionBatch
from distllm.engine.batch import StepTensors
from distllm.engine.distributed.shared_bytes import map_bytes
from distllm.engine.sampling.candidates import MAX_CANDIDATES, Candidates
from distllm.engine.sampling.needed_logits import NeededLogits

_ALIGNMENT = 64
_NUM_SIZES = 7


@dataclass(frozen=True, slots=True)
class FrameSize:
    """The most that a step may carry. `vocab_sizes` are those of the ranks' parts.

    Into a stage come `width` activations of `dtype` with each token, none where `width` is 0.
    """

    max_tokens: int
    max_sequences: int
    max_blocks: int
    vocab_sizes: tuple[int, ...]
    width: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def max_rows(self) -> int:
        """Every token's logits may be asked for to score it, and every sequence's to sample."""
        return self.max_tokens + self.max_sequences


class StepFrame:
    """One rank's view of the frame. The first rank writes a step; all read it, and the others write logits."""

    def __init__(self, descriptor: int, size: FrameSize) -> None:
        int64, int32, float32 = torch.int64, torch.int32, torch.float32
        layout = [
            ((_NUM_SIZES,), int64),
            ((size.max_tokens,), int64),
            ((size.max_tokens,), int64),
            ((size.max_tokens,), int64),
            ((size.max_rows,), int64),
            ((size.max_sequences,), int64),
            ((2 * size.max_sequences,), int64),
            ((size.max_sequences + 1,), int32),
            ((size.max_sequences,), int32),
            ((size.max_sequences * size.max_blocks,), int32),
            ((size.max_tokens * size.width,), size.dtype),
        ]
        for vocab_size in size.vocab_sizes:
            layout += [
                ((size.max_rows * vocab_size,), float32),
                ((size.max_sequences * MAX_CANDIDATES,), float32),
                ((size.max_sequences * MAX_CANDIDATES,), int32),
            ]
        fields = _map_fields(descriptor, layout)
        self._sizes, self._ids, self._positions, self._slots, self._rows, self._counts = fields[:6]
        self._copies, self._starts, self._computed, self._tables, self._activations = fields[6:11]
        self._logits, self._best_values, self._best_ids = fields[11::3], fields[12::3], fields[13::3]
        self._vocab_sizes = size.vocab_sizes
        self._width = size.width

    def write(self, batch: StepTensors, activations: Tensor | None = None) -> None:
        """`batch` is in host memory, and so are `activations` [num_tokens, width] of a stage before."""
        attention = batch.attention
        num_sequences, width = attention.block_tables.shape
        num_copies = batch.copies.shape[1]
        num_rows, num_listed = len(batch.needed_rows), len(batch.num_candidates)
        num_received = 0 if activations is None else len(activations)
        sizes = (batch.input_ids.numel(), num_sequences, width, num_rows, num_listed, num_copies, num_received)
        self._sizes.copy_(torch.tensor(sizes))
        if activations is not None:
            _place(self._activations, activations)
        for field, values in (
            (self._ids, batch.input_ids),
            (self._positions, batch.position_ids),
            (self._slots, attention.slot_mapping),
            (self._rows, batch.needed_rows),
            (self._counts, batch.num_candidates),
            (self._copies, batch.copies),
            (self._starts, attention.query_starts),
            (self._computed, attention.num_computed),
            (self._tables, attention.block_tables),
        ):
            _place(field, values)

    def read(self) -> StepTensors:
        """The step that was written last, as views of the frame."""
        num_tokens, num_sequences, width, num_rows, num_listed, num_copies, _ = self._sizes.tolist()
        return StepTensors(
            input_ids=self._ids[:num_tokens].unsqueeze(0),
            position_ids=self._positions[:num_tokens].unsqueeze(0),
            attention=AttentionBatch(
                query_starts=self._starts[: num_sequences + 1],
                num_computed=self._computed[:num_sequences],
                block_tables=self._tables[: num_sequences * width].view(num_sequences, width),
                slot_mapping=self._slots[:num_tokens],
            ),
            needed_rows=self._rows[:num_rows],
            num_candidates=self._counts[:num_listed],
            copies=self._copies[: 2 * num_copies].view(2, num_copies),
        )

    def read_activations(self) -> Tensor | None:
        """Those that were written with the last step: a view of the frame, [num_tokens, width]."""
        num_received = int(self._sizes[-1])
        return _view(self._activations, (num_received, self._width)) if num_received else None

    def write_logits(self, rank: int, logits: NeededLogits) -> None:
        """Of the rank's part of the vocabulary, on any device."""
        _place(self._logits[rank], logits.whole)
        if logits.best is not None:
            _place(self._best_values[rank], logits.best.values)
            _place(self._best_ids[rank], logits.best.ids)

    def read_logits(self, rank: int, batch: StepTensors) -> NeededLogits:
        """What a rank has written for the step `batch`: views, in host memory."""
        num_listed = len(batch.num_candidates)
        shape = (len(batch.needed_rows) - num_listed, self._vocab_sizes[rank])
        whole = _view(self._logits[rank], shape)
        if not num_listed:
            return NeededLogits(whole, None)
        shape = (num_listed, int(batch.num_candidates.max()))
        return NeededLogits(
            whole, Candidates(_view(self._best_values[rank], shape), _view(self._best_ids[rank], shape))
        )


def _place(field: Tensor, values: Tensor) -> None:
    _view(field, values.shape).copy_(values)


def _view(field: Tensor, shape: Sequence[int]) -> Tensor:
    return field[: math.prod(shape)].view(shape)


def _map_fields(descriptor: int, layout: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[Tensor]:
    """Flat tensors one after the other, each aligned."""
    lengths = [math.prod(shape) * dtype.itemsize for shape, dtype in layout]
    ends = list(accumulate(-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths))
    mapped = torch.from_numpy(map_bytes(descriptor, ends[-1]))
    return [
        mapped[start : start + length].view(dtype)
        for start, length, (_, dtype) in zip([0, *ends], lengths, layout, strict=False)
    ]
