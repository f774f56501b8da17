"""Turns a step's chunks into the tensors that one forward pass reads. Pure: plain values in, tensors out."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distllm.engine.attention.interface import AttentionBatch
from distllm.engine.interface import BLOCK_SIZE, BlockCopy, SequenceChunk


@dataclass(frozen=True, slots=True)
class StepTensors:
    """The tokens of all chunks, one after the other, and where each of them belongs.

    rows:  | chunk 0 ........ | chunk 1 | chunk 2 ... |
           query_starts[0]    [1]       [2]           [3]
    """

    input_ids: Tensor  # int64 [1, num_tokens]
    position_ids: Tensor  # int64 [1, num_tokens]
    attention: AttentionBatch
    needed_rows: Tensor  # int64 [num_rows], whose logits are read
    num_candidates: Tensor  # int64 [num_listed], how many best tokens are all that is read of each of the last rows
    copies: Tensor  # int64 [2, num_copies], blocks copied before the step: sources, destinations

    def to(self, device: torch.device) -> "StepTensors":
        """On `device`, but for `num_candidates`, which is read in host memory."""
        return StepTensors(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.attention.to(device),
            self.needed_rows.to(device),
            self.num_candidates,
            self.copies.to(device),
        )


def build_step_tensors(
    chunks: Sequence[SequenceChunk],
    rows: Sequence[int],
    copies: Sequence[BlockCopy] = (),
    num_candidates: Sequence[int] = (),
) -> StepTensors:
    """The tensors, in host memory, of a step that needs logits of the given rows, and of the last candidates alone.

    `chunks` is not empty and none of them is.
    """
    lengths = np.fromiter((len(chunk.token_ids) for chunk in chunks), np.int64, len(chunks))
    starts = np.concatenate((np.zeros(1, np.int64), lengths.cumsum()))
    num_tokens = int(starts[-1])
    token_ids = np.fromiter(chain.from_iterable(chunk.token_ids for chunk in chunks), np.int64, num_tokens)
    num_computed = np.fromiter((chunk.num_computed_before for chunk in chunks), np.int64, len(chunks))
    positions = np.arange(num_tokens) + (num_computed - starts[:-1]).repeat(lengths)
    tables = _stack_block_tables(chunks)
    sequences = np.arange(len(chunks)).repeat(lengths)
    slots = tables[sequences, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE

    return StepTensors(
        input_ids=torch.from_numpy(token_ids).unsqueeze(0),
        position_ids=torch.from_numpy(positions).unsqueeze(0),
        attention=AttentionBatch(
            query_starts=_as_int32(starts),
            num_computed=_as_int32(num_computed),
            block_tables=_as_int32(tables),
            slot_mapping=torch.from_numpy(slots),
        ),
        needed_rows=torch.tensor(rows, dtype=torch.int64),
        num_candidates=torch.tensor(num_candidates, dtype=torch.int64),
        copies=torch.tensor([[copy.source, copy.destination] for copy in copies], dtype=torch.int64).view(-1, 2).T,
    )


def _as_int32(values: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(values).to(torch.int32)


def _stack_block_tables(chunks: Sequence[SequenceChunk]) -> NDArray[np.int64]:
    """Block tables side by side, padded with 0: [num_chunks, longest]."""
    tables = np.zeros((len(chunks), max(len(chunk.block_table) for chunk in chunks)), np.int64)
    for row, chunk in zip(tables, chunks, strict=True):
        row[: len(chunk.block_table)] = chunk.block_table
    return tables
