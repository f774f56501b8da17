"""Reads of a checkpoint only what a rank holds: finds each stored tensor's part from the parts of the parameters.

A stored tensor may be renamed, or be one of several that transformers' conversion stacks or joins to a parameter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from distllm.engine.distributed.division import CannotDivide
from distllm.engine.distributed.sharding import Part


@dataclass(frozen=True, slots=True)
class PartOfStored:
    """A stored tensor, not yet read, that yields a rank's part of it when it is indexed."""

    whole: Any
    part: Part

    def __getitem__(self, index: Any) -> Tensor:
        assert index is Ellipsis, "a stored tensor is read in one go"
        return self.part.take(self.whole[...])


def take_parts(model: PreTrainedModel, stored: Mapping[str, Any], parts: Mapping[str, Part]) -> dict[str, Any]:
    """`stored` tensors by name, each with a part replaced by that part; `model` is on the meta device.

    Raises CannotDivide where a parameter that is divided comes from tensors that cannot be.
    """
    found = find_parts(model, {name: whole.get_shape() for name, whole in stored.items()}, parts)
    return {name: PartOfStored(whole, found[name]) if name in found else whole for name, whole in stored.items()}


def find_parts(
    model: PreTrainedModel, shapes: Mapping[str, Sequence[int]], parts: Mapping[str, Part]
) -> dict[str, Part]:
    """The parts of stored tensors, from those of the parameters that they become; what is not named is whole.

    `shapes` are those of whole tensors by name. Raises as take_parts does.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    names = model.state_dict()
    found = {}
    for source in sorted(shapes):
        target, pattern = rename_source_key(source, renamings, converters, model.base_model_prefix, names)
        part = parts.get(target if target in names else source)
        if part is not None and pattern is not None:
            part = _before_conversion(source, part, by_pattern[pattern], pattern, shapes[source])
        if part is not None:
            found[source] = part
    return found


def _before_conversion(
    source: str, part: Part, converter: WeightConverter, pattern: str, shape: Sequence[int]
) -> Part:
    """The part of one of the tensors that are stacked along a new first dimension and then joined along another."""
    stack, *rest = converter.operations
    is_known = isinstance(stack, MergeModulelist) and stack.dim == 0 and len(rest) <= 1
    if not is_known or not all(isinstance(join, Concatenate) and join.dim == part.dim for join in rest):
        raise CannotDivide(f"{source} is stored in a form that cannot be divided over ranks")
    dim = part.dim - 1
    if not rest:
        return Part(dim, part.spans)
    number = converter.source_patterns.index(pattern)
    start, stop = part.spans[number]
    offset = number * shape[dim]
    return Part(dim, ((start - offset, stop - offset),))
