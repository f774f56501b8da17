"""A user's injection policy: checked against a model, and made a sharding plan of it.

A policy names, in a class of layers, linear layers as "parent.child"; the class itself may be the parent. As with
DeepSpeed, the partial outputs of what it names are added up over ranks, and the other linear layers of that parent
are divided by their outputs. Those may be named as well: added up is always the last one that has the outputs of a
whole layer. A parent of which nothing is named is whole on every rank.
"""

import difflib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.distributed.plans import PLANS, Axis, Block
from distllm.engine.distributed.sharding import matches

logger = logging.getLogger("distllm.engine")

Policy = Mapping[str, Sequence[str]]

_MAX_NEAR = 4


class InvalidPolicy(ValueError):
    """An injection policy does not go with the model; the message says what would."""


def check_policy(model: nn.Module, policy: Policy) -> None:
    """Every class and every name of `policy` is in `model`. Raises InvalidPolicy, which lists near matches."""
    for class_name, names in policy.items():
        found = {name for layer in _layers(model, class_name) for name, _ in _linears(layer)}
        for name in names:
            if not any(_is_named(path, name.removeprefix(f"{class_name}.")) for path in found):
                raise InvalidPolicy(
                    f"injection_policy: {class_name} has no linear layer {name}; {_near(name, found)}"
                )


def policy_blocks(model: PreTrainedModel, policy: Policy) -> tuple[Block, ...]:
    """The sharding plan that `policy` makes of `model`; experts are divided by the model's own, where it has one.

    Raises InvalidPolicy.
    """
    check_policy(model, policy)
    known = PLANS.get(model.config.get_text_config().model_type, ())
    hidden_size = int(model.config.get_text_config().hidden_size)
    blocks = [block for block in known if block.is_experts]
    for class_name, names in policy.items():
        for layer in _layers(model, class_name):
            within = [name.removeprefix(f"{class_name}.") for name in names]
            for parent_name, row in _rows(layer, within, hidden_size):
                block = _block(model, parent_name, layer.get_submodule(parent_name), row, known)
                if block not in blocks:
                    blocks.append(block)
    logger.debug("the injection policy adds up the outputs of %s", ", ".join(block.row for block in blocks))
    return tuple(blocks)


def _layers(model: nn.Module, class_name: str) -> list[nn.Module]:
    layers = [module for module in model.modules() if type(module).__name__ == class_name]
    if not layers:
        classes = {type(module).__name__ for module in model.modules()}
        raise InvalidPolicy(f"injection_policy: the model has no {class_name}; {_near(class_name, classes)}")
    return layers


def _linears(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers within, in the order in which they were made."""
    return ((name, child) for name, child in layer.named_modules() if isinstance(child, nn.Linear | Conv1D))


def _is_named(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _near(name: str, known: Collection[str]) -> str:
    """What resembles `name`, or everything there is."""
    near = difflib.get_close_matches(name, known, _MAX_NEAR, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(known))}"


def _rows(layer: nn.Module, names: Sequence[str], hidden_size: int) -> Iterator[tuple[str, str]]:
    """Each parent of which something is named, and its child whose outputs are added up. Raises InvalidPolicy.

    That child is the last one with the outputs of a whole layer.
    """
    parents: dict[str, dict[str, nn.Module]] = {}
    for path, linear in _linears(layer):
        parent, _, child = path.rpartition(".")
        parents.setdefault(parent, {})[child] = linear
    for parent, linears in parents.items():
        named = [child for child in linears if any(_is_named(f"{parent}.{child}", name) for name in names)]
        rows = [child for child, linear in linears.items() if _sizes(linear)[1] == hidden_size]
        if named and not rows:
            raise InvalidPolicy(
                f"injection_policy: no linear layer of {parent} has {hidden_size} outputs to add up"
            )
        if named and rows[-1] not in named:
            raise InvalidPolicy(
                f"injection_policy: of {parent} the outputs of {rows[-1]} are those to add up, not {named[-1]}'s: "
                f"name {parent}.{rows[-1]}"
            )
        if named:
            yield parent, rows[-1]


def _block(model: PreTrainedModel, name: str, parent: nn.Module, row: str, known: Sequence[Block]) -> Block:
    """How `parent` is divided: as the model's own plan knows it, else as the sizes of its layers say."""
    for block in known:
        if block.row == row and matches(parent, block):
            return block
    columns = {child: layer for child, layer in parent.named_children() if isinstance(layer, nn.Linear | Conv1D)}
    num_inputs = _sizes(columns.pop(row))[0]
    if "att" not in f"{name}.{type(parent).__name__}".lower():
        inner = {child: _inner(name, child, layer, num_inputs) for child, layer in columns.items()}
        return Block(inner, row, Axis.INNER)
    config = model.config.get_text_config()
    heads = {child: _heads(name, child, layer, num_inputs, config) for child, layer in columns.items()}
    return Block(heads, row, Axis.QUERY_HEADS)


def _inner(parent: str, child: str, layer: nn.Module, num_inner: int) -> tuple[Axis, ...]:
    num_outputs = _sizes(layer)[1]
    if num_outputs != num_inner:
        raise InvalidPolicy(
            f"injection_policy: {parent}.{child} has {num_outputs} outputs where {num_inner} are summed over; "
            "how they lie in it is not known: leave this parent out of the policy"
        )
    return (Axis.INNER,)


def _heads(parent: str, child: str, layer: nn.Module, num_inputs: int, config: Any) -> tuple[Axis, ...]:
    num_heads = int(config.num_attention_heads)
    num_kv_heads = int(getattr(config, "num_key_value_heads", None) or num_heads)
    width = num_inputs // num_heads
    axes = {num_heads * width: (Axis.QUERY_HEADS,), num_kv_heads * width: (Axis.KV_HEADS,)}
    num_outputs = _sizes(layer)[1]
    if num_heads == num_kv_heads:
        axes = {num_heads * width: (Axis.QUERY_HEADS,)}
    if num_outputs not in axes:
        raise InvalidPolicy(
            f"injection_policy: {parent}.{child} has {num_outputs} outputs, which are neither {num_heads} query "
            f"heads nor {num_kv_heads} key and value heads of {width}: leave this parent out of the policy"
        )
    return axes[num_outputs]


def _sizes(layer: Any) -> tuple[int, int]:
    """Numbers of inputs and outputs."""
    first, second = layer.weight.shape
    return (first, second) if isinstance(layer, Conv1D) else (second, first)
