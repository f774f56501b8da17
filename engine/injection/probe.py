"""Finds out whether a model can be served: which modules attend, and whether the paged forward is right.

A model that keeps state outside the attention interface, or that reads positions from elsewhere, is refused here
with the reason rather than served wrongly.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distllm.engine.attention.interface import AttentionCall
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.injection.attention import ATTENTION_NAME, LayerShape, attach, detach

_PAGED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "attention"})


@dataclass(frozen=True, slots=True)
class DiscoveredLayer:
    """A module that attends once a forward pass, and what it asked for."""

    module: nn.Module
    shape: LayerShape
    call: AttentionCall


@dataclass(frozen=True, slots=True)
class _Recorder:
    """Notes the attention calls of one module among `layers` and answers with zeros."""

    module: nn.Module
    layers: list[DiscoveredLayer]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
        shape = LayerShape(keys.shape[1], keys.shape[2], values.shape[2])
        self.layers.append(DiscoveredLayer(self.module, shape, call))
        return query.new_zeros(*query.shape[:2], shape.value_dim)


def discover_layers(model: PreTrainedModel) -> list[DiscoveredLayer]:
    """The attending modules in the order in which they are called. Raises CheckpointError."""
    _check_signature(model)
    layers: list[DiscoveredLayer] = []
    for module in model.modules():
        attach(module, _Recorder(module, layers))
    try:
        forward(model, torch.tensor([[0, 0]]), torch.tensor([[0, 1]]), torch.tensor([1]))
    except NotImplementedError as error:
        raise _refusal(model, str(error)) from None
    finally:
        for module in model.modules():
            detach(module)
    _check_layers(model, layers)
    return layers


@torch.inference_mode()
def forward(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, rows: Tensor) -> Tensor:
    """Logits of the given rows of one flattened batch: [1, num_tokens] -> [num_rows, vocab_size]."""
    device = model.device
    output = model(
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        use_cache=False,
        logits_to_keep=rows.to(device),
    )
    logits: Tensor = output.logits[0]
    return logits


def plain_logits(model: PreTrainedModel, token_ids: list[int]) -> Tensor:
    """Logits of the last of a few tokens by transformers' own attention: [vocab_size]."""
    model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([token_ids])
        return forward(model, ids, torch.arange(len(token_ids)).unsqueeze(0), torch.tensor([len(token_ids) - 1]))[0]
    finally:
        model.set_attn_implementation(ATTENTION_NAME)


def _check_signature(model: PreTrainedModel) -> None:
    accepted = inspect.signature(model.forward).parameters
    for name in ("position_ids", "logits_to_keep"):
        if name not in accepted:
            raise _refusal(model, f"its forward takes no {name}")


def _check_layers(model: PreTrainedModel, layers: list[DiscoveredLayer]) -> None:
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or []
    unknown = sorted(set(layer_types) - _PAGED_LAYER_TYPES)
    if unknown:
        raise _refusal(model, f"it has layers of type {unknown[0]}")
    if len(layers) != config.num_hidden_layers:
        raise _refusal(
            model, f"{config.num_hidden_layers} layers called the attention interface {len(layers)} times"
        )
    if len({id(layer.module) for layer in layers}) != len(layers):
        raise _refusal(model, "several layers share one attention module")
    for layer_type, layer in zip(layer_types, layers, strict=False):
        if (layer_type == "sliding_attention") != (layer.call.sliding_window is not None):
            raise _refusal(model, "its layers do not say how far they see")


def _refusal(model: PreTrainedModel, reason: str) -> CheckpointError:
    return CheckpointError(f"{type(model).__name__} cannot be served: {reason}")
