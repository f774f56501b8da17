"""Finds what a decoder can be cut into, by watching it run without its weights: layers, what is before and after.

A model whose layers hand on or take more than hidden states is refused: a stage could not tell them the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.decoder_layers import NoDecoderLayers, find_decoder_layers
from distllm.engine.injection.attention import LayerShape
from distllm.engine.injection.probe import discover_layers, refusal
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.boundary import hidden_states_of
from distllm.engine.pipeline.stage_model.observed_pass import ObservedPass, observe_pass, tensors_in


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """Names of a model's decoder layers, and of the parameters and stored buffers outside of them.

    `before` are used before the first layer, `after` behind the last; what is tied is where any of its names is.
    `shapes` are those of each layer's KV. Hidden states are `width` long; `returns_tuple` tells how a layer gives
    them.
    """

    layers: tuple[str, ...]
    before: frozenset[str]
    after: frozenset[str]
    shapes: tuple[LayerShape, ...]
    width: int
    returns_tuple: bool

    def held_by(self, layers: LayerRange, names: Iterable[str]) -> set[str]:
        """Those of a model's parameters and stored buffers, by `names`, that a stage of `layers` holds."""
        within = tuple(f"{name}." for name in self.layers[layers.begin : layers.end])
        before, after = (self.before if layers.is_first else ()), (self.after if layers.is_last else ())
        return {name for name in names if name.startswith(within) or name in before or name in after}


def find_decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """The parts of `model`, built on the meta device, which is of no other use then. Raises CheckpointError."""
    first_names = _first_names(model)
    _fill_with_zeros(model)
    attending = discover_layers(model)
    try:
        layers = find_decoder_layers(model, [layer.module for layer in attending])
    except NoDecoderLayers as error:
        raise _refusal(model, str(error)) from None
    observed, other = (observe_pass(model, layers, value) for value in (0, 1))
    _check_calls(model, observed, len(layers))
    _check_beside(model, observed, other)
    names = {id(module): name for name, module in model.named_modules()}
    layer_names = tuple(names[id(layer)] for layer in layers)
    outside = {name: first for name, first in first_names.items() if not _is_within(name, layer_names)}
    parents = {"", *(layer_names[0][:end] for end, letter in enumerate(layer_names[0]) if letter == ".")}
    before, after = (_used(outside, modules - parents) for modules in (observed.before, observed.after))
    if unused := outside.keys() - before - after:
        raise _refusal(model, f"which stage needs {min(unused)} cannot be told")
    return DecoderParts(
        layers=layer_names,
        before=before,
        after=after,
        shapes=tuple(layer.shape for layer in attending),
        width=int(observed.calls[0].hidden.shape[-1]),
        returns_tuple=not isinstance(observed.calls[0].output, Tensor),
    )


def _first_names(model: PreTrainedModel) -> Mapping[str, str]:
    """Of every parameter and stored buffer, by each of its names, one that is the same for all that are tied."""
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    return {name: names[model.all_tied_weights_keys.get(name, name)] for name in names}


def _fill_with_zeros(model: nn.Module) -> None:
    """Give a model on the meta device parameters that are zero and take no memory."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    model.eval()


def _check_calls(model: PreTrainedModel, observed: ObservedPass, num_layers: int) -> None:
    """Every layer runs once and in order, on what the one before made and nothing else did."""
    if [call.number for call in observed.calls] != list(range(num_layers)):
        raise _refusal(model, "its layers do not run one after the other")
    for call, following in pairwise(observed.calls):
        if following.hidden is not hidden_states_of(call.output):
            raise _refusal(model, "something changes hidden states between its layers")
    for call in observed.calls:
        if not isinstance(call.hidden, Tensor) or len(list(tensors_in(call.output))) != 1:
            raise _refusal(model, "its layers hand on more than hidden states")


def _check_beside(model: PreTrainedModel, observed: ObservedPass, other: ObservedPass) -> None:
    """What layers are given beside hidden states is the same for other tokens."""
    for call, again in zip(observed.calls, other.calls, strict=True):
        if len(call.beside) != len(again.beside) or not all(map(torch.equal, call.beside, again.beside)):
            raise _refusal(model, "its layers read tokens or embeddings beside their hidden states")


def _is_within(name: str, layers: Sequence[str]) -> bool:
    return name.startswith(tuple(f"{layer}." for layer in layers))


def _used(first_names: Mapping[str, str], modules: set[str]) -> frozenset[str]:
    """Names of what `modules` have, and of what is tied to it."""
    used = {first for name, first in first_names.items() if name.rpartition(".")[0] in modules}
    return frozenset(name for name, first in first_names.items() if first in used)


def _refusal(model: PreTrainedModel, reason: str) -> CheckpointError:
    return refusal(model, f"it cannot be cut into stages: {reason}")
