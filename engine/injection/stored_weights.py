"""Gives the modules of a model the quantized weights of a checkpoint, read when they are packed or first used."""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from distllm.engine.checkpoint import Checkpoint, CheckpointError, StoredTensor
from distllm.engine.contentless import empty_like
from distllm.engine.distributed.sharding import Part
from distllm.engine.injection.packed_experts import EXPERTS_NAME, register_experts
from distllm.engine.quantization.formats import read_weight
from distllm.engine.quantization.stored import FIELDS, StoredQuantization
from distllm.engine.quantization.tensor import QuantizedTensor, concatenate
from distllm.engine.quantization.weight import QuantizedWeight

logger = logging.getLogger("distllm.engine")

_MERGES = frozenset({"MergeModulelist", "Concatenate"})


Place = tuple[int, int]
"""Expert, and place among the layers whose rows make up that expert's weight; (0, 0) of a weight of its own."""


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One quantized layer: its name and its tensors by field."""

    layer: str
    fields: Mapping[str, StoredTensor]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Makes weights that are read from the checkpoint's files when they are needed."""

    quantization: StoredQuantization
    dtype: torch.dtype
    device: torch.device

    def weight(
        self,
        parts: Sequence[StoredPart],
        shape: tuple[int, ...],
        held: Part | None,
        *,
        is_transposed: bool = False,
    ) -> QuantizedWeight:
        """Of `shape`, the rows of `parts` one after the other; `held` says which of them, or of the inputs."""
        rows, columns = reversed(shape) if is_transposed else shape
        if held is not None and is_transposed:
            held = Part(1 - held.dim, held.spans)
        load = partial(self._read, parts, (rows, columns), held)
        return QuantizedWeight(load, (rows, columns), self.dtype, is_transposed=is_transposed)

    def _read(self, parts: Sequence[StoredPart], shape: tuple[int, int], held: Part | None) -> QuantizedTensor:
        """Raises CheckpointError where what is stored does not fit."""
        read = [self._read_part(part) for part in parts]
        if not all(read[0].goes_with(part) for part in read[1:]):
            raise CheckpointError(
                f"{parts[0].layer} and {parts[1].layer} are quantized differently; they must agree"
            )
        tensor = concatenate(read)
        if held is not None:
            tensor = _take(parts[0].layer, tensor, held)
        if (tensor.out_features, tensor.in_features) != shape:
            found = (tensor.out_features, tensor.in_features)
            raise CheckpointError(f"{parts[0].layer} has shape {found}, config.json asks for {shape}")
        return tensor.to(self.device)

    def _read_part(self, part: StoredPart) -> QuantizedTensor:
        fields = {field: self._read_field(tensor) for field, tensor in part.fields.items()}
        try:
            return read_weight(self.quantization, fields, self.dtype)
        except ValueError as error:
            shard = next(iter(part.fields.values())).shard
            raise CheckpointError(f"{shard}: {part.layer}: {error}") from None

    def _read_field(self, tensor: StoredTensor) -> Tensor:
        if self.device.type == "meta":
            return empty_like(tensor)
        with safe_open(tensor.shard, framework="pt", device="cpu") as file:
            return cast(Tensor, file.get_tensor(tensor.name))


def _take(layer: str, tensor: QuantizedTensor, held: Part) -> QuantizedTensor:
    try:
        return tensor.take_rows(held.spans) if held.dim == 0 else tensor.take_columns(held.spans)
    except ValueError as error:
        raise CheckpointError(f"{layer} cannot be divided over ranks: {error}") from None


def attach_stored_weights(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    held: Mapping[str, Part],
) -> set[str]:
    """Put the checkpoint's quantized weights in the place of the model's. Returns the names of their tensors.

    `held` says of which parameters the model holds only a part.

    Raises CheckpointError for a weight that the model has no place for.
    """
    quantization = checkpoint.quantization
    if quantization is None:
        return set()
    if quantization.keeps_inputs and device.type != "meta":
        logger.warning(
            "%s asks for inputs rounded in a way that is not known here; they stay as they are",
            checkpoint.path,
        )
    layers = quantized_layers(checkpoint, quantization)
    if not layers:
        raise CheckpointError(
            f"{checkpoint.path} is called quantized ({quantization.method}) and has no such weights"
        )
    places: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    find_place = PlaceFinder(model)
    for layer in layers:
        parameter, place = find_place(layer)
        places[parameter][place] = layer
    for parameter, names in places.items():
        parts = {place: StoredPart(name, layers[name]) for place, name in sorted(names.items())}
        _attach(model, parameter, _Reader(quantization, dtype, device), parts, held.get(parameter))
    return {tensor.name for fields in layers.values() for tensor in fields.values()}


def quantized_layers(
    checkpoint: Checkpoint, quantization: StoredQuantization
) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of each quantized layer by field, by the layer's name."""
    marker, *others = FIELDS[quantization.format]
    is_marked = {"I8", "F8_E4M3"} if marker == "weight" else {"I32"}
    layers = {}
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(f".{marker}") and tensor.dtype in is_marked:
            layer = name.removesuffix(f".{marker}")
            found = {field: checkpoint.tensors.get(f"{layer}.{field}") for field in others}
            layers[layer] = {marker: tensor} | {field: part for field, part in found.items() if part is not None}
    return layers


@dataclass(frozen=True, slots=True)
class Merge:
    """How transformers makes a parameter of several tensors, and the place of one among those of an expert."""

    converter: WeightConverter
    place: int


class PlaceFinder:
    """Knows what transformers renames and merges while it loads a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._state = model.state_dict()

    def __call__(self, layer: str) -> tuple[str, Place]:
        """The parameter that a layer's weight becomes, or becomes a part of, and which part."""
        name, merge = self.find(f"{layer}.weight")
        if name not in self._state:
            raise CheckpointError(f"{layer} is quantized, and the model has no place for it")
        if merge is None:
            return name, (0, 0)
        expert = find_expert(layer)
        if expert is None or not _MERGES.issuperset(type(step).__name__ for step in merge.converter.operations):
            raise CheckpointError(
                f"{layer} is quantized and would have to be converted, which is known for experts alone"
            )
        return name, (expert, merge.place)

    def parameter_of(self, key: str) -> str | None:
        """The parameter or buffer that a stored tensor becomes a part of, alone or with others of its layer."""
        for candidate in (key, f"{key.rpartition('.')[0]}.weight"):
            name, _ = self.find(candidate)
            if name in self._state:
                return name
        return None

    def find(self, key: str) -> tuple[str, Merge | None]:
        """What a stored tensor is called in the model, and how it becomes a part of that if it does."""
        name, pattern = rename_source_key(key, self._renamings, self._converters, self._prefix, self._state)
        if name not in self._state:
            name, pattern = rename_source_key(key, [], [], self._prefix, self._state)
        if pattern is None:
            return name, None
        converter = next(entry for entry in self._converters if pattern in entry.source_patterns)
        return name, Merge(converter, converter.source_patterns.index(pattern))


def find_expert(name: str) -> int | None:
    """The number of the expert that a stored tensor belongs to, by its name."""
    found = re.search(r"\.experts\.(\d+)\.", name)
    return None if found is None else int(found[1])


def _attach(
    model: PreTrainedModel, name: str, reader: "_Reader", parts: Mapping[Place, StoredPart], held: Part | None
) -> None:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter = module._parameters.pop(attribute)
    assert parameter is not None
    module._is_hf_initialized = True  # or transformers would draw its weights at random
    if attribute == "weight":
        weight = reader.weight(
            list(parts.values()), tuple(parameter.shape), held, is_transposed=isinstance(module, Conv1D)
        )
        module.weight = weight
        return
    by_expert: dict[int, list[StoredPart]] = defaultdict(list)
    for (expert, _), part in parts.items():
        by_expert[expert].append(part)
    if sorted(by_expert) != list(range(len(parameter))):
        raise CheckpointError(f"{name} lacks some of its {len(parameter)} experts")
    of_expert = None if held is None else Part(held.dim - 1, held.spans)
    weights = [reader.weight(by_expert[i], tuple(parameter.shape[1:]), of_expert) for i in sorted(by_expert)]
    setattr(module, attribute, weights)
    register_experts()
    model.set_experts_implementation(EXPERTS_NAME)
