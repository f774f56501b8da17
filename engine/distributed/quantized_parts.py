"""Which part of each stored field of a quantized weight belongs to a rank: the layouts of formats.py, as data."""

from collections.abc import Callable, Mapping
from enum import Enum, auto

from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.checkpoint import Checkpoint, StoredTensor
from distllm.engine.distributed.division import CannotDivide
from distllm.engine.distributed.sharding import Part
from distllm.engine.distributed.stored_parts import find_parts
from distllm.engine.injection.stored_weights import PlaceFinder, quantized_layers
from distllm.engine.quantization.formats import has_sorted_inputs
from distllm.engine.quantization.stored import StoredFormat, StoredQuantization


class _Axis(Enum):
    """What one dimension of a field counts. Where it has a single entry for all, every rank has that."""

    FEATURES = auto()
    FEATURE_WORDS = auto()
    FEATURE_BLOCKS = auto()
    INPUTS = auto()
    INPUT_WORDS = auto()
    GROUPS = auto()


_N, _N_WORDS, _N_BLOCKS = _Axis.FEATURES, _Axis.FEATURE_WORDS, _Axis.FEATURE_BLOCKS
_K, _K_WORDS, _G = _Axis.INPUTS, _Axis.INPUT_WORDS, _Axis.GROUPS
_OF_INPUTS = frozenset({_K, _K_WORDS, _G})

_LAYOUTS: Mapping[StoredFormat, Mapping[str, tuple[_Axis, ...]]] = {
    "gptq": {"qweight": (_K_WORDS, _N), "qzeros": (_G, _N_WORDS), "scales": (_G, _N), "g_idx": (_K,)},
    "awq": {"qweight": (_K, _N_WORDS), "qzeros": (_G, _N_WORDS), "scales": (_G, _N)},
    "packed": {
        "weight_packed": (_N, _K_WORDS),
        "weight_scale": (_N, _G),
        "weight_zero_point": (_N_WORDS, _G),
        "weight_g_idx": (_K,),
    },
    "int8": {"weight": (_N, _K), "weight_scale": (_N_BLOCKS, _G), "weight_zero_point": (_N_BLOCKS, _G)},
    "fp8": {"weight": (_N, _K), "weight_scale": (_N_BLOCKS, _G), "weight_scale_inv": (_N_BLOCKS, _G)},
}
"""The dimensions of each field; what is not named is whole on every rank."""
_INPUT_GROUPS = ("g_idx", "weight_g_idx")

ReadTensor = Callable[[str], Tensor]
"""Reads a stored tensor by its name."""


def find_all_parts(
    model: PreTrainedModel, checkpoint: Checkpoint, parts: Mapping[str, Part], read: ReadTensor | None = None
) -> dict[str, Part]:
    """As find_parts, of every tensor of a checkpoint, the fields of quantized weights among them.

    `read` lets inputs that were sorted be noticed. Raises CannotDivide, naming the layer, where a part would cut a
    group, a block of scales, or a word of codes.
    """
    quantization = checkpoint.quantization
    layers = {} if quantization is None else quantized_layers(checkpoint, quantization)
    fields = {tensor.name for of_layer in layers.values() for tensor in of_layer.values()}
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items() if name not in fields}
    found = find_parts(model, shapes, parts)
    if quantization is None:
        return found
    weights = {f"{layer}.weight": _weight_shape(quantization, of_layer) for layer, of_layer in layers.items()}
    find_place, of_weights = PlaceFinder(model), find_parts(model, weights, parts)
    for layer, of_layer in layers.items():
        part = of_weights.get(f"{layer}.weight")
        if part is None:
            continue
        parameter, _ = find_place(layer)
        if isinstance(model.get_submodule(parameter.rpartition(".")[0]), Conv1D):
            part = Part(1 - part.dim, part.spans)
        divided = _Divided(layer, quantization, weights[f"{layer}.weight"], part)
        if read is not None:
            divided.check_order(of_layer, read)
        found |= divided.parts_of(of_layer)
    return found


def _weight_shape(quantization: StoredQuantization, fields: Mapping[str, StoredTensor]) -> tuple[int, int]:
    """[out_features, in_features], whole words of inputs."""
    layout = _LAYOUTS[quantization.format]
    field = next(iter(layout))
    per_word = 32 // quantization.bits
    sizes = {
        axis: size * (per_word if axis in (_N_WORDS, _K_WORDS) else 1)
        for axis, size in zip(layout[field], fields[field].shape, strict=True)
    }
    features, inputs = (
        next(size for axis, size in sizes.items() if (axis in _OF_INPUTS) == is_input) for is_input in (False, True)
    )
    return features, inputs


class _Divided:
    """One quantized weight of `shape` [N, K] and a rank's part of it."""

    def __init__(self, layer: str, quantization: StoredQuantization, shape: tuple[int, int], part: Part) -> None:
        self._layer = layer
        self._quantization = quantization
        self._shape = shape
        self._part = part

    def check_order(self, fields: Mapping[str, StoredTensor], read: ReadTensor) -> None:
        """Raises CannotDivide where inputs are to be divided that were sorted by their groups."""
        for field in _INPUT_GROUPS:
            if self._part.dim == 1 and field in fields and has_sorted_inputs(read(fields[field].name)):
                self._refuse("its inputs are sorted by their groups (desc_act)")

    def parts_of(self, fields: Mapping[str, StoredTensor]) -> dict[str, Part]:
        """By the names of the stored tensors."""
        layout = _LAYOUTS[self._quantization.format]
        found = {}
        for field, tensor in fields.items():
            for dim, (axis, size) in enumerate(zip(layout.get(field, ()), tensor.shape, strict=False)):
                if (axis in _OF_INPUTS) == (self._part.dim == 1):
                    per_entry = self._per_entry(axis, size, tensor.dtype)
                    if per_entry < self._shape[self._part.dim]:
                        found[tensor.name] = Part(dim, self._entries(axis, per_entry))
        return found

    def _per_entry(self, axis: _Axis, size: int, dtype: str) -> int:
        """Features or inputs that one of `size` entries of a field stands for."""
        length = self._shape[self._part.dim]
        if size == 1:
            return length
        if axis in (_N_WORDS, _K_WORDS):
            return 32 // self._quantization.bits if dtype == "I32" else 1
        block = self._quantization.block
        if block is not None and axis in (_N_BLOCKS, _G):
            side = block[axis is _G]
            if size == -(-length // side):  # the last block may be partial
                return side
        return -(-length // size)

    def _entries(self, axis: _Axis, per_entry: int) -> tuple[tuple[int, int], ...]:
        length = self._shape[self._part.dim]
        if any(bound % per_entry and bound != length for span in self._part.spans for bound in span):
            kind = "groups" if axis is _G else "blocks" if axis is _N_BLOCKS else "words"
            self._refuse(f"{kind} of {per_entry} {'inputs' if axis in _OF_INPUTS else 'features'} would be cut")
        return tuple((start // per_entry, -(-stop // per_entry)) for start, stop in self._part.spans)

    def _refuse(self, reason: str) -> None:
        raise CannotDivide(f"{self._layer} cannot be divided over ranks: {reason}")
