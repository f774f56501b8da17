"""Leaves weights in the checkpoint's files that would be copied to be loaded, until each one's turn comes.

They are of another type there, or rows of several tensors, or a rank needs columns of them.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
from transformers.pytorch_utils import Conv1D

from distllm.engine.checkpoint import StoredTensor
from distllm.engine.distributed.sharding import Part
from distllm.engine.distributed.stored_parts import find_parts
from distllm.engine.injection.mapped_pages import MappedPages
from distllm.engine.injection.packed_experts import EXPERTS_NAME, PROJECTIONS, register_experts
from distllm.engine.injection.policies import has_experts
from distllm.engine.injection.stored_weights import Merge, PlaceFinder, find_expert
from distllm.engine.injection.unread_weight import UnreadWeight

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def leave_unread(
    model: PreTrainedModel, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, held: Mapping[str, Part]
) -> set[str]:
    """Put UnreadWeights in the place of the weights of linear layers and experts that loading would copy.

    `tensors` are as they lie in the files; `held` says of which parameters the model holds only a part. Returns the
    names of the tensors that were left. What does not fit its place is not among them: whoever loads the rest
    refuses it.
    """
    files = _Files(tensors.values(), dtype)
    parts = find_parts(model, {name: tensor.shape for name, tensor in tensors.items()}, held)
    left: set[str] = set()
    for parameter, sources in _by_parameter(model, tensors, dtype).items():
        pieces = [_Piece(tensors[name], parts.get(name)) for name, _ in sources]
        owner, _, attribute = parameter.rpartition(".")
        module = model.get_submodule(owner)
        shape = tuple(module.get_parameter(attribute).shape)
        weights = (
            _experts(files, module, sources, pieces, shape) if has_experts(module) else _whole(files, pieces, shape)
        )
        if weights is not None:
            del module._parameters[attribute]
            module._is_hf_initialized = True  # as UnreadWeight says
            setattr(module, attribute, weights)
            left |= {piece.tensor.name for piece in pieces}
    if any(has_experts(module) and isinstance(module.down_proj, list) for module in model.modules()):
        register_experts()
        model.set_experts_implementation(EXPERTS_NAME)
    return left


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stored tensor and what a rank holds of it; None for all."""

    tensor: StoredTensor
    part: Part | None

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = list(self.tensor.shape)
        if self.part is not None:
            sizes[self.part.dim] = self.part.size()
        return tuple(sizes)


_Source = tuple[str, Merge | None]
"""The name of a stored tensor, and how it becomes a part of a parameter if it does."""


class _Files:
    """The checkpoint's files, mapped for as long as a weight in them is unread."""

    def __init__(self, tensors: Iterable[StoredTensor], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._files: dict[Path, Any] = {
            shard: safe_open(shard, framework="pt", device="cpu", backend="mmap")
            for shard in {tensor.shard for tensor in tensors}
        }
        self._pages = MappedPages()

    def is_view(self, piece: _Piece) -> bool:
        """Whether a piece is loaded without a copy: of this type, and rows that lie together."""
        is_cut = piece.part is not None and (piece.part.dim > 0 or len(piece.part.spans) > 1)
        return _FLOATS[piece.tensor.dtype] is self.dtype and not is_cut

    def weight(self, pieces: Sequence[_Piece], shape: tuple[int, ...]) -> UnreadWeight:
        """The rows of `pieces` one after the other."""
        return UnreadWeight(partial(self._read_rows, pieces), shape, self.dtype)

    def expert(self, piece: _Piece, number: int, shape: tuple[int, int], *, is_transposed: bool) -> UnreadWeight:
        """Of a tensor that has all experts' weights: [out_features, in_features], however it is stored."""
        load = partial(self._read_expert, piece, number, is_transposed)
        return UnreadWeight(load, shape[::-1] if is_transposed else shape, self.dtype)

    def _read_rows(self, pieces: Sequence[_Piece]) -> Tensor:
        stored = [self._stored(piece) for piece in pieces]
        rows = [self._converted(whole, piece.part) for whole, piece in zip(stored, pieces, strict=True)]
        weight = rows[0] if len(rows) == 1 else torch.cat(rows)
        self._forget_copied(stored, weight)
        return weight

    def _read_expert(self, piece: _Piece, number: int, is_transposed: bool) -> Tensor:
        stored, part = self._stored(piece)[number], piece.part
        weight = self._converted(stored, None if part is None else Part(part.dim - 1, part.spans))
        self._forget_copied([stored], weight)
        return weight.T if is_transposed else weight

    def _stored(self, piece: _Piece) -> Tensor:
        """A view of the mapped file."""
        whole: Tensor = self._files[piece.tensor.shard].get_slice(piece.tensor.name)[...]
        return whole

    def _converted(self, whole: Tensor, part: Part | None) -> Tensor:
        return (whole if part is None else part.take(whole)).to(self.dtype)

    def _forget_copied(self, stored: Sequence[Tensor], weight: Tensor) -> None:
        """Let the pages of what was read go, unless the weight is a view of them."""
        for whole in stored:
            if whole.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
                self._pages.forget(whole)


def _by_parameter(
    model: PreTrainedModel, tensors: Mapping[str, StoredTensor], dtype: torch.dtype
) -> dict[str, list[_Source]]:
    """The stored tensors of each weight that may be left unread, by the parameter that they become."""
    find_place = PlaceFinder(model)
    places: dict[str, list[_Source]] = defaultdict(list)
    for name in sorted(tensors):
        parameter, merge = find_place.find(name)
        places[parameter].append((name, merge))
    kept_wide = tuple(model._get_dtype_plan(dtype))
    candidates = _candidates(model)
    return {
        parameter: sources
        for parameter, sources in places.items()
        if parameter in candidates
        and all(tensors[name].dtype in _FLOATS for name, _ in sources)
        and not any(re.search(pattern, parameter) for pattern in kept_wide)
    }


def _candidates(model: PreTrainedModel) -> set[str]:
    """The weights of linear layers and experts that no other module shares."""
    users = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    return {
        f"{name}.{attribute}"
        for name, module in model.named_modules()
        for attribute, weight in module._parameters.items()
        if users[id(weight)] == 1
        and (
            (attribute in PROJECTIONS and has_experts(module))
            or (attribute == "weight" and type(module) in (nn.Linear, Conv1D))
        )
    }


def _whole(files: _Files, pieces: Sequence[_Piece], shape: tuple[int, ...]) -> UnreadWeight | None:
    """None where the weight is loaded as a view, or does not fit."""
    (piece, *others) = pieces
    if others or files.is_view(piece) or piece.shape != shape:
        return None
    return files.weight([piece], shape)


def _experts(
    files: _Files, module: Any, sources: Sequence[_Source], pieces: Sequence[_Piece], shape: tuple[int, ...]
) -> list[UnreadWeight] | None:
    """One weight an expert. None as `_whole`, and where they are merged in a way that is not known."""
    if sources[0][1] is None:
        (piece, *others) = pieces
        if others or files.is_view(piece) or piece.shape != shape:
            return None
        one = (shape[1], shape[2])
        return [files.expert(piece, i, one, is_transposed=module.is_transposed) for i in range(shape[0])]
    if module.is_transposed or not _stacks_rows(sources[0][1].converter):
        return None
    by_expert: dict[int | None, dict[int, _Piece]] = defaultdict(dict)
    for (name, merge), piece in zip(sources, pieces, strict=True):
        by_expert[find_expert(name)][0 if merge is None else merge.place] = piece
    num_places = len(sources[0][1].converter.source_patterns)
    rows = [[by_expert[i][place] for place in sorted(by_expert[i])] for i in range(shape[0])]
    is_fit = len(by_expert) == shape[0] and all(
        len(of_one) == num_places and (sum(piece.shape[0] for piece in of_one), of_one[0].shape[1]) == shape[1:]
        for of_one in rows
    )
    return [files.weight(of_one, shape[1:]) for of_one in rows] if is_fit else None


def _stacks_rows(converter: WeightConverter) -> bool:
    """Whether it stacks experts along a new first dimension and joins what each has, row after row."""
    stack, *rest = converter.operations
    is_stack = isinstance(stack, MergeModulelist) and stack.dim == 0 and len(rest) <= 1
    return is_stack and all(isinstance(join, Concatenate) and join.dim == 1 for join in rest)
