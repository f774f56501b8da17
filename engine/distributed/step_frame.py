"""A step's tensors and what the ranks make of them, in shared memory: nothing is pickled, nothing allocated.

header | input_ids, position_ids, slot_mapping | needed_rows | copies | query_starts, num_computed, block_tables
logits of rank 0 | logits of rank 1 | ...                                    (float32 [max_rows, its vocabulary])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from distllm.engine.attention.interface import AttentionBatch
from distllm.engine.batch import StepTensors
from distllm.engine.distributed.shared_bytes import map_bytes

_ALIGNMENT = 64
_NUM_SIZES = 5


@dataclass(frozen=True, slots=True)
class FrameSize:
    """The most that a step may carry. `vocab_sizes` are those of the ranks' parts."""

    max_tokens: int
    max_sequences: int
    max_blocks: int
    vocab_sizes: tuple[int, ...]

    @property
    def max_rows(self) -> int:
        """Every token's logits may be asked for to score it, and every sequence's to sample."""
        return self.max_tokens + self.max_sequences


class StepFrame:
    """One rank's view of the frame. The first rank writes a step; all read it, and write their logits."""

    def __init__(self, descriptor: int, size: FrameSize) -> None:
        int64, int32, float32 = torch.int64, torch.int32, torch.float32
        layout = [
            ((_NUM_SIZES,), int64),
            ((size.max_tokens,), int64),
            ((size.max_tokens,), int64),
            ((size.max_tokens,), int64),
            ((size.max_rows,), int64),
            ((2 * size.max_sequences,), int64),
            ((size.max_sequences + 1,), int32),
            ((size.max_sequences,), int32),
            ((size.max_sequences * size.max_blocks,), int32),
            *(((size.max_rows * vocab_size,), float32) for vocab_size in size.vocab_sizes),
        ]
        fields = _map_fields(descriptor, layout)
        self._sizes, self._ids, self._positions, self._slots, self._rows, self._copies = fields[:6]
        self._starts, self._computed, self._tables = fields[6:9]
        self._logits = fields[9:]
        self._vocab_sizes = size.vocab_sizes

    def write(self, batch: StepTensors) -> None:
        """`batch` is in host memory."""
        attention = batch.attention
        num_sequences, width = attention.block_tables.shape
        num_copies = batch.copies.shape[1]
        sizes = (batch.input_ids.numel(), num_sequences, width, batch.needed_rows.numel(), num_copies)
        self._sizes.copy_(torch.tensor(sizes))
        for field, values in (
            (self._ids, batch.input_ids),
            (self._positions, batch.position_ids),
            (self._slots, attention.slot_mapping),
            (self._rows, batch.needed_rows),
            (self._copies, batch.copies),
            (self._starts, attention.query_starts),
            (self._computed, attention.num_computed),
            (self._tables, attention.block_tables),
        ):
            field[: values.numel()].view(values.shape).copy_(values)

    def read(self) -> StepTensors:
        """The step that was written last, as views of the frame."""
        num_tokens, num_sequences, width, num_rows, num_copies = self._sizes.tolist()
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
            copies=self._copies[: 2 * num_copies].view(2, num_copies),
        )

    def write_logits(self, rank: int, logits: Tensor) -> None:
        """float32 [num_rows, the rank's part of the vocabulary], on any device."""
        self._logits[rank][: logits.numel()].view(logits.shape).copy_(logits)

    def read_logits(self, rank: int, num_rows: int) -> Tensor:
        """What a rank has written for the step's rows: a view, in host memory."""
        width = self._vocab_sizes[rank]
        return self._logits[rank][: num_rows * width].view(num_rows, width)


def _map_fields(descriptor: int, layout: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[Tensor]:
    """Flat tensors one after the other, each aligned."""
    lengths = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout]
    ends = list(accumulate(-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths))
    mapped = torch.from_numpy(map_bytes(descriptor, ends[-1]))
    return [
        mapped[start : start + length].view(dtype)
        for start, length, (_, dtype) in zip([0, *ends], lengths, layout, strict=False)
    ]
