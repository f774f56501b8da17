"""Says what of a checkpoint a stage holds, and opens no file of it that holds nothing of that."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from distllm.engine.checkpoint import (
    INDEX_NAME,
    Checkpoint,
    CheckpointError,
    describe_checkpoint,
    find_shards,
    present_files,
    read_header,
    read_index,
    read_json,
)
from distllm.engine.conversion.rank_checkpoint import is_divided
from distllm.engine.injection.stored_weights import PlaceFinder
from distllm.engine.loading import build_on_meta, load_config, refuse_unexpected
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.decoder_parts import DecoderParts, find_decoder_parts


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage's layers, what the model consists of, and the stage's tensors alone as a checkpoint."""

    layers: LayerRange
    parts: DecoderParts
    checkpoint: Checkpoint


def plan_stage(path: Path, layers: LayerRange) -> StagePlan:
    """What a stage of `layers` holds of the checkpoint in directory `path`. Raises CheckpointError.

    Files with tensors of other stages alone need not be there. In a checkpoint of several types of numbers, `auto`
    would be what most of the stage's are: name the type that all stages compute in.
    """
    if is_divided(path):
        raise CheckpointError(f"{path} was converted for several ranks; stages need what it came from")
    files = stored_files(path)
    parts, held = find_held(path, layers, files)
    shards = present_files(path, (files[name] for name in held))
    tensors = [tensor for shard in shards for tensor in read_header(shard) if tensor.name in held]
    return StagePlan(layers, parts, describe_checkpoint(path, tensors))


def find_held(path: Path, layers: LayerRange, stored: Iterable[str]) -> tuple[DecoderParts, set[str]]:
    """What the model consists of, and which of the tensors `stored` a stage of `layers` holds.

    Reads no more than config.json in directory `path`. Raises CheckpointError.
    """
    described = Checkpoint(path, read_json(path / "config.json"), {})
    model = build_on_meta(described, load_config(described), torch.bfloat16)
    num_layers = model.config.get_text_config().num_hidden_layers
    if num_layers != layers.num_layers:
        raise CheckpointError(f"{path} has {num_layers} layers, and the stage is one of {layers.num_layers}")
    names = tuple(model.state_dict())
    place = PlaceFinder(model)
    parts = find_decoder_parts(model)
    held = parts.held_by(layers, names)
    owners = {name: place.parameter_of(name) for name in stored}
    refuse_unexpected(described, model, {name for name, owner in owners.items() if owner is None})
    return parts, {name for name, owner in owners.items() if owner in held}


def stored_files(path: Path) -> Mapping[str, str]:
    """The name of the file that each stored tensor is in. Raises CheckpointError."""
    if (path / INDEX_NAME).is_file():
        return read_index(path / INDEX_NAME)
    (shard,) = find_shards(path)
    return {tensor.name: shard.name for tensor in read_header(shard)}
