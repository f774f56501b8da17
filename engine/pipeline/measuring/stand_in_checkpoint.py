"""Writes a checkpoint of the right names, types and shapes, and of no sense: it is as fast as one that has some."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from distllm.engine.checkpoint import WEIGHTS_NAME, StoredTensor
from distllm.engine.contentless import empty_like
from distllm.engine.pipeline.messages import LayerSample
from distllm.engine.quantization.safetensors_writer import PlannedTensor, write_safetensors

_WEIGHT_SIZE = 0.02
"""Of random weights: as models are initialised, so that activations neither vanish nor overflow."""
_TILE = 1 << 20
"""Elements that are drawn; larger tensors repeat them."""


def write_stand_in(sample: LayerSample, directory: Path) -> None:
    """Raises CheckpointError for a type that is unknown, or OSError."""
    (directory / "config.json").write_bytes(sample.config_json)
    shard = directory / WEIGHTS_NAME
    stored = [StoredTensor.described(it.name, it.dtype, it.shape, shard) for it in sample.tensors]
    planned = [PlannedTensor(it.name, it.dtype, it.shape, it.num_bytes) for it in stored]
    write_safetensors(shard, planned, _contents(stored, [it.content for it in sample.tensors]))


def _contents(stored: list[StoredTensor], given: list[bytes | None]) -> Iterator[Tensor]:
    """What is given; else random numbers where these may be any, and zero for codes and exponents."""
    drawn = torch.randn(_TILE, generator=torch.Generator().manual_seed(0)) * _WEIGHT_SIZE
    for tensor, content in zip(stored, given, strict=True):
        empty = empty_like(tensor)
        if content is not None:
            tile = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        elif empty.is_floating_point() and tensor.dtype != "F8_E8M0":
            tile = drawn.to(empty.dtype).view(torch.uint8)
        else:
            tile = torch.zeros(_TILE, dtype=torch.uint8)
        copies = -(-empty.nbytes // len(tile))
        yield tile.repeat(copies)[: empty.nbytes].view(empty.dtype).view(empty.shape)
