"""Watches one forward pass of a model without content: what its layers are given, and what runs around them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distllm.engine.injection.probe import discover_layers
from distllm.engine.pipeline.stage_model.boundary import HIDDEN_STATES


@dataclass(slots=True)
class LayerCall:
    """One run of a decoder layer: the hidden states it was given, the other tensors beside them, its output."""

    number: int
    hidden: Any
    beside: list[Tensor]
    output: Any = None


@dataclass(slots=True)
class ObservedPass:
    """The layers' calls in order, and the names of the modules outside of them that ran before and after.

    `before` ran before the first layer, `after` behind it.
    """

    calls: list[LayerCall] = field(default_factory=list)
    before: set[str] = field(default_factory=set)
    after: set[str] = field(default_factory=set)

    def enter(self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook of layer `number` before it runs."""
        hidden, *others = args or (kwargs[HIDDEN_STATES],)
        named = [value for name, value in sorted(kwargs.items()) if args or name != HIDDEN_STATES]
        self.calls.append(LayerCall(number, hidden, list(tensors_in([*others, *named]))))

    def leave(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        """The hook of every layer behind it."""
        self.calls[-1].output = output

    def use(self, name: str, *_: Any) -> None:
        """The hook of the module `name` outside of the layers before it runs."""
        (self.after if self.calls else self.before).add(name)


def observe_pass(model: PreTrainedModel, layers: Sequence[nn.Module], value: int) -> ObservedPass:
    """A pass over tokens `value`, in which all that an embedding yields is `value`. Raises CheckpointError."""
    observed = ObservedPass()
    inside = {id(module) for layer in layers for module in layer.modules()}
    with ExitStack() as hooks:
        handles = [model.register_forward_pre_hook(partial(_with_tokens, value), with_kwargs=True)]
        for number, layer in enumerate(layers):
            handles.append(layer.register_forward_pre_hook(partial(observed.enter, number), with_kwargs=True))
            handles.append(layer.register_forward_hook(observed.leave))
        for name, module in model.named_modules():
            if id(module) not in inside:
                handles.append(module.register_forward_pre_hook(partial(observed.use, name)))
                if isinstance(module, nn.Embedding):
                    handles.append(module.register_forward_hook(partial(_filled, value)))
        for handle in handles:
            hooks.callback(handle.remove)
        discover_layers(model)
    return observed


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a value, in lists, tuples and dictionaries too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in([value[key] for key in sorted(value)])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def _with_tokens(
    value: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "input_ids": torch.full_like(kwargs["input_ids"], value)}


def _filled(value: int, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.full_like(output, value)
