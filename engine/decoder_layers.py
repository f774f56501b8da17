"""Finds a model's decoder layers: the parts that run one after the other, once a forward pass."""

from collections.abc import Sequence

from torch import nn


class NoDecoderLayers(ValueError):
    """A model is not a list of layers that attend once each; the message says in which way."""


def find_decoder_layers(model: nn.Module, attending: Sequence[nn.Module]) -> list[nn.Module]:
    """The item of a module list that each attending module lies in, in the same order. Raises NoDecoderLayers."""
    names = {id(module): name for name, module in model.named_modules()}
    layers = [_enclosing_item(model, names[id(module)]) for module in attending]
    if len({id(layer) for layer in layers}) != len(layers):
        raise NoDecoderLayers(f"{type(model).__name__} attends several times in one layer")
    return layers


def _enclosing_item(model: nn.Module, name: str) -> nn.Module:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if isinstance(model.get_submodule(".".join(parts[: end - 1])), nn.ModuleList):
            return model.get_submodule(".".join(parts[:end]))
    raise NoDecoderLayers(f"{type(model).__name__} keeps its layers in no list")
