"""Finds out whether a model can be served: which modules attend, and whether the paged forward is right.

A model that keeps state outside the attention interface, or that reads positions from elsewhere, is refused here
with the reason rather than served wrongly.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from distllm.engine.attention.interface import AttentionCall
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.injection.attention import ATTENTION_NAME, CHECKED_NAME, LayerShape, attach, detach
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.boundary import run_model

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


class _WithoutProducts(TorchFunctionMode):
    """Answers matrix products with zeros of the right shape, so that a probe reads no weights."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear:
            return args[0].new_zeros(*args[0].shape[:-1], args[1].shape[0])
        if func is torch.addmm:
            return args[1].new_zeros(args[1].shape[0], args[2].shape[1])
        if func is torch._grouped_mm:
            return args[0].new_zeros(args[0].shape[0], args[1].shape[-1])
        return func(*args, **(kwargs or {}))


def discover_layers(model: PreTrainedModel, held: LayerRange | None = None) -> list[DiscoveredLayer]:
    """The attending modules in the order in which they are called. Raises CheckpointError.

    `held` are the layers that the model has not left to other stages.
    """
    _check_signature(model)
    layers: list[DiscoveredLayer] = []
    for module in model.modules():
        attach(module, _Recorder(module, layers))
    model.set_attn_implementation(CHECKED_NAME)
    try:
        with _WithoutProducts():
            ids, positions = torch.tensor([[[0, 0]], [[0, 1]]], device=model.device)
            forward(model, ids, positions, torch.tensor([1], device=model.device))
    except Exception as error:  # whatever a model does that was not written for this
        raise refusal(model, f"a probe of two tokens failed: {describe(error)}") from error
    finally:
        model.set_attn_implementation(ATTENTION_NAME)
        for module in model.modules():
            detach(module)
    _check_layers(model, layers, held)
    return layers


@torch.inference_mode()
def forward(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, rows: Tensor) -> Tensor:
    """Logits of the given rows of one flattened batch: [1, num_tokens] -> [num_rows, vocab_size].

    Of a stage that is not the last: activations of every token, [num_tokens, width].
    """
    return run_model(model, input_ids=input_ids, position_ids=position_ids, logits_to_keep=rows)[0]


def describe(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def refusal(model: PreTrainedModel, reason: str) -> CheckpointError:
    return CheckpointError(f"{type(model).__name__} cannot be served: {reason}")


def _check_signature(model: PreTrainedModel) -> None:
    accepted = inspect.signature(model.forward).parameters
    for name in ("position_ids", "logits_to_keep"):
        if name not in accepted:
            raise refusal(model, f"its forward takes no {name}")


def _check_layers(model: PreTrainedModel, layers: list[DiscoveredLayer], held: LayerRange | None) -> None:
    config = model.config.get_text_config()
    held = held or LayerRange(0, config.num_hidden_layers, config.num_hidden_layers)
    layer_types = (getattr(config, "layer_types", None) or [])[held.begin : held.end]
    unknown = sorted(set(layer_types) - _PAGED_LAYER_TYPES)
    if unknown:
        raise refusal(model, f"it has layers of type {unknown[0]}")
    if len(layers) != len(held):
        raise refusal(model, f"its {len(held)} layers called the attention interface {len(layers)} times")
    if len({id(layer.module) for layer in layers}) != len(layers):
        raise refusal(model, "several of its layers share one attention module")
    for layer_type, layer in zip(layer_types, layers, strict=bool(layer_types)):
        if layer_type == "sliding_attention" and layer.call.sliding_window is None:
            raise refusal(model, "it has sliding windows and does not tell the attention interface")
