"""Loads a checkpoint as an engine would, with shapes in the place of contents, to meet what would be refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from distllm.engine.checkpoint import Checkpoint, StoredTensor, describe_checkpoint
from distllm.engine.compute import Compute, choose_compute
from distllm.engine.config import EngineConfig
from distllm.engine.conversion.rank_checkpoint import open_for_rank
from distllm.engine.device import resolve_device
from distllm.engine.dtypes import resolve_dtype
from distllm.engine.examination import Examination
from distllm.engine.factory import num_ranks
from distllm.engine.injection.quantizing import Schemes, choose_schemes
from distllm.engine.injection.weights import weights_of
from distllm.engine.quantization.weight import QuantizedWeight
from distllm.engine.served_model import load_part


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a rank would hold, on the meta device, and how it would quantize and compute it."""

    model: PreTrainedModel
    schemes: Schemes
    compute: Compute
    dtype: torch.dtype


def rehearse(examination: Examination) -> Iterator[Rehearsed]:
    """Every rank's part in turn. Raises CheckpointError or ValueError, as serving would."""
    size = num_ranks(examination.config)
    for rank in range(size):
        yield _rehearse_rank(open_examined(examination, rank, size), examination.config, rank, size)


def open_examined(examination: Examination, rank: int = 0, size: int | None = None) -> Checkpoint:
    """The checkpoint in question, by its files or, where these are elsewhere, by their headers."""
    path = Path(examination.config.model)
    if examination.headers is None:
        return open_for_rank(path, rank, size)
    tensors = (StoredTensor(name, dtype, shape, path / file) for name, dtype, shape, file in examination.headers)
    return describe_checkpoint(path, tensors)


def _rehearse_rank(checkpoint: Checkpoint, config: EngineConfig, rank: int, size: int) -> Rehearsed:
    device = resolve_device(config.device, rank)
    dtype: torch.dtype = getattr(torch, resolve_dtype(config.dtype, checkpoint, device.type))
    compute = choose_compute(config, device, dtype)
    rank_of_size = None if size == 1 else (rank, size)
    model = load_part(checkpoint, config, dtype, torch.device("meta"), rank_of_size).model
    for weight in weights_of(model):
        if isinstance(weight, QuantizedWeight):
            weight.load()
    schemes = {} if config.quantization is None else choose_schemes(model, config.quantization)
    return Rehearsed(model, schemes, compute, dtype)
