"""Cuts a model without contents down to a stage, so that the stage never holds more than its own."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.absent_weight import AbsentWeight
from distllm.engine.pipeline.stage_model.boundary import Boundary, Entrance, end_behind
from distllm.engine.pipeline.stage_model.decoder_parts import DecoderParts


class BypassedLayer(nn.Module):
    """In the place of another stage's layer: hands hidden states on, and has the attributes that models look up."""

    def __init__(self, original: nn.Module, *, returns_tuple: bool) -> None:
        super().__init__()
        own = vars(self).keys()
        vars(self).update({name: value for name, value in vars(original).items() if name not in own})
        self._returns_tuple = returns_tuple

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return (hidden_states,) if self._returns_tuple else hidden_states


def cut(
    model: PreTrainedModel, parts: DecoderParts, layers: LayerRange, dtype: torch.dtype, device: torch.device
) -> Boundary:
    """Leave `model`, on the meta device, only what a stage of `layers` holds, to compute on `device`."""
    names = tuple(model.state_dict())
    held = parts.held_by(layers, names)
    tied = model.all_tied_weights_keys.items()
    model.all_tied_weights_keys = {target: source for target, source in tied if {target, source} <= held}
    for name in (parts.before | parts.after) - held:
        _leave_absent(model, name, dtype, device)
    for number, name in enumerate(parts.layers):
        if number not in layers:
            bypassed = BypassedLayer(model.get_submodule(name), returns_tuple=parts.returns_tuple)
            model.set_submodule(name, bypassed)
    if not layers.is_last:
        end_behind(model.get_submodule(parts.layers[layers.end - 1]))
    first = model.get_submodule(parts.layers[layers.begin])
    return Boundary(layers, None if layers.is_first else Entrance(first, parts.width))


def leave_anchor(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """A parameter without elements, by which a model whose weights are elsewhere knows its type and device."""
    model.register_parameter("stage_anchor", nn.Parameter(torch.empty(0, dtype=dtype, device=device), False))


def _leave_absent(model: nn.Module, name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Something without content in the place of a parameter or buffer, such as runs before the stage's layers."""
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor = getattr(module, attribute)
    delattr(module, attribute)
    module._is_hf_initialized = True  # type: ignore[assignment]  # or transformers would draw it at random
    if tensor.dim() < 2:
        setattr(module, attribute, torch.zeros(tensor.shape, dtype=dtype, device=device))
    else:
        absent = AbsentWeight(tensor.shape, dtype, is_transposed=isinstance(module, Conv1D))
        setattr(module, attribute, absent)
