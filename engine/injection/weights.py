"""The weights of modules that are not packed yet: dense parameters, or unread or quantized ones in their place."""

from collections.abc import Iterator

from torch import Tensor, nn

from distllm.engine.injection.unread_weight import UnreadWeight
from distllm.engine.quantization.weight import QuantizedWeight

Weight = Tensor | QuantizedWeight | UnreadWeight


def weight_of(module: nn.Module) -> Weight | None:
    """The module's `weight`, None where it has none of these."""
    weight = module._parameters.get("weight", module.__dict__.get("weight"))
    return weight if isinstance(weight, Weight) else None


def own_weights(module: nn.Module) -> Iterator[Weight]:
    """The module's own parameters and what stands in their place, in lists of experts too."""
    for parameter in module._parameters.values():
        if parameter is not None:
            yield parameter
    for value in module.__dict__.values():
        for weight in value if isinstance(value, list) else [value]:
            if isinstance(weight, QuantizedWeight | UnreadWeight):
                yield weight


def weights_of(model: nn.Module) -> Iterator[Weight]:
    """Every weight of a model once."""
    seen: set[int] = set()
    for module in model.modules():
        for weight in own_weights(module):
            if id(weight) not in seen:
                seen.add(id(weight))
                yield weight
