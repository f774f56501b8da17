"""Applies a sharding plan to a model: which part of which parameter a rank holds. Reads shapes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.distributed.division import CannotDivide, HeadDivision, divide, divide_heads
from distllm.engine.distributed.plans import PLANS, Axis, Block
from distllm.engine.injection.policies import has_experts

INNER_UNIT = 16
"""Features of an MLP, or tokens of the vocabulary, that stay together where there are enough: a panel's width."""


@dataclass(frozen=True, slots=True)
class Part:
    """The spans [start, stop) along dimension `dim` of a parameter that a rank holds, one after the other."""

    dim: int
    spans: tuple[tuple[int, int], ...]

    def take(self, whole: Tensor) -> Tensor:
        """The rank's part of a whole tensor: a view of it where it is one span."""
        pieces = [whole.narrow(self.dim, start, stop - start) for start, stop in self.spans]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.dim)

    def size(self) -> int:
        return sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True, slots=True)
class Sharding:
    """What one rank of several holds of a model.

    `parts` are by parameter name; what is not named is whole. `rows` and `experts` name the modules whose outputs
    are partial sums. `vocabulary` are the token ids whose embeddings and logits the rank holds.
    """

    rank: int
    size: int
    parts: Mapping[str, Part]
    rows: tuple[str, ...]
    experts: tuple[str, ...]
    heads: Mapping[str, HeadDivision]
    vocabulary: range
    vocabularies: tuple[range, ...]


def plan_sharding(
    model: PreTrainedModel,
    rank: int,
    size: int,
    blocks: Sequence[Block] | None = None,
    unit: int = INNER_UNIT,
    num_layers: int | None = None,
) -> Sharding:
    """The part of `model` that `rank` of `size` holds; `blocks` None takes the plan of its type.

    `unit` features of an MLP stay together where they can. A stage of a model has no more than `num_layers`.

    Raises CannotDivide, naming what forbids it.
    """
    model_type = model.config.get_text_config().model_type
    blocks = PLANS.get(model_type) if blocks is None else blocks
    if blocks is None:
        raise CannotDivide(
            f"there is no sharding plan for {model_type}, only for {', '.join(PLANS)}; use --tensor-parallel-size 1"
        )
    return _Planner(model, blocks, rank, size, unit, num_layers).plan()


class _Planner:
    """Walks a model and collects what its blocks divide."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Sequence[Block],
        rank: int,
        size: int,
        unit: int,
        num_layers: int | None,
    ) -> None:
        config = model.config.get_text_config()
        self._model = model
        self._blocks = blocks
        self._rank, self._size, self._unit = rank, size, unit
        self._num_heads = int(config.num_attention_heads)
        self._num_kv_heads = int(getattr(config, "num_key_value_heads", None) or self._num_heads)
        self._num_layers = num_layers or int(config.num_hidden_layers)
        self._parts: dict[str, Part] = {}
        self._rows: list[str] = []
        self._experts: list[str] = []
        self._heads: dict[str, HeadDivision] = {}

    def plan(self) -> Sharding:
        heads = divide_heads(self._num_heads, self._num_kv_heads, self._size)[self._rank]
        for name, module in self._model.named_modules():
            for block in self._blocks:
                if matches(module, block):
                    self._divide_block(name, module, block, heads)
        if len(self._heads) != self._num_layers:
            raise CannotDivide(
                f"the sharding plan finds {len(self._heads)} attention modules in {self._num_layers} layers"
            )
        vocabularies = tuple(self._divide_vocabulary())
        return Sharding(
            rank=self._rank,
            size=self._size,
            parts=self._parts,
            rows=tuple(self._rows),
            experts=tuple(self._experts),
            heads=self._heads,
            vocabulary=vocabularies[self._rank],
            vocabularies=vocabularies,
        )

    def _divide_block(self, name: str, module: nn.Module, block: Block, heads: HeadDivision) -> None:
        row = _layer(module, block.row, block.is_experts)
        num_inner = row.num_inputs
        counts = {Axis.QUERY_HEADS: self._num_heads, Axis.KV_HEADS: self._num_kv_heads, Axis.INNER: num_inner}
        ranges = {Axis.QUERY_HEADS: heads.query, Axis.KV_HEADS: heads.kv}
        if block.row_axis is Axis.INNER:
            ranges[Axis.INNER] = divide(num_inner, self._size, self._unit)[self._rank]
        else:
            self._heads[name] = heads
        for column in block.columns:
            if column in block.optional and getattr(module, column, None) is None:
                continue
            layer = _layer(module, column, block.is_experts)
            spans = _spans(f"{name}.{column}", layer.num_outputs, block.columns[column], counts, ranges)
            for parameter, dim in layer.output_dims:
                self._parts[f"{name}.{parameter}"] = Part(dim, spans)
        for vector, axis in block.vectors.items():
            length = module.get_parameter(vector).shape[0]
            self._parts[f"{name}.{vector}"] = Part(0, _spans(vector, length, (axis,), counts, ranges))
        spans = _spans(f"{name}.{block.row}", num_inner, (block.row_axis,), counts, ranges)
        self._parts[f"{name}.{row.weight}"] = Part(row.input_dim, spans)
        if block.is_experts:
            self._experts.append(name)
        else:
            self._rows.append(f"{name}.{block.row}")

    def _divide_vocabulary(self) -> list[range]:
        embedding, head = self._model.get_input_embeddings(), self._model.get_output_embeddings()
        if head is None or embedding.weight.shape[0] != head.weight.shape[0]:
            raise CannotDivide("the model's output head is not over the vocabulary of its embedding")
        vocabularies = divide(head.weight.shape[0], self._size, INNER_UNIT)
        span = ((vocabularies[self._rank].start, vocabularies[self._rank].stop),)
        for name, module in self._model.named_modules():
            if module is embedding or module is head:
                for parameter in module._parameters:
                    if module._parameters[parameter] is not None:
                        self._parts[f"{name}.{parameter}"] = Part(0, span)
        return vocabularies


@dataclass(frozen=True, slots=True)
class _Layer:
    """The parameters of a linear layer or of a list of experts: names within its parent, and their dimensions."""

    weight: str
    num_inputs: int
    num_outputs: int
    input_dim: int
    output_dims: tuple[tuple[str, int], ...]


def _layer(parent: nn.Module, name: str, is_experts: bool) -> _Layer:
    if is_experts:
        weight: Tensor = getattr(parent, name)
        outputs, inputs = (2, 1) if getattr(parent, "is_transposed", False) else (1, 2)
        bias = ((f"{name}_bias", 1),) if parent._parameters.get(f"{name}_bias") is not None else ()
        return _Layer(name, weight.shape[inputs], weight.shape[outputs], inputs, ((name, outputs), *bias))
    layer = getattr(parent, name)
    outputs, inputs = (1, 0) if isinstance(layer, Conv1D) else (0, 1)
    bias = ((f"{name}.bias", 0),) if layer.bias is not None else ()
    weight_name = f"{name}.weight"
    return _Layer(
        weight_name,
        layer.weight.shape[inputs],
        layer.weight.shape[outputs],
        inputs,
        ((weight_name, outputs), *bias),
    )


def matches(module: nn.Module, block: Block) -> bool:
    """Whether `module` is of the kind that `block` describes."""
    if block.is_experts != has_experts(module):
        return False
    present = [name for name in block.columns if _has(module, name, block.is_experts)]
    required = set(block.columns) - block.optional
    return (
        _has(module, block.row, block.is_experts)
        and required <= set(present)
        and bool(present)
        and all(isinstance(module._parameters.get(name), Tensor) for name in block.vectors)
    )


def _has(module: nn.Module, name: str, is_experts: bool) -> bool:
    child: Any = module._parameters.get(name) if is_experts else module._modules.get(name)
    return isinstance(child, Tensor if is_experts else nn.Linear | Conv1D)


def _spans(
    name: str,
    length: int,
    axes: Sequence[Axis],
    counts: Mapping[Axis, int],
    ranges: Mapping[Axis, range],
) -> tuple[tuple[int, int], ...]:
    """Where the rank's ranges of `axes`, which lie one after the other in `length`, are."""
    width, rest = divmod(length, sum(counts[axis] for axis in axes))
    if rest or not width:
        raise CannotDivide(f"{name} has {length} features, which its heads or gates do not divide")
    spans, offset = [], 0
    for axis in axes:
        spans.append((offset + ranges[axis].start * width, offset + ranges[axis].stop * width))
        offset += counts[axis] * width
    return tuple(spans)
