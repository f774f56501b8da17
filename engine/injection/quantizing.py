"""Chooses how each weight of a model is quantized."""

import copy
from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.injection.packed_experts import PROJECTIONS
from distllm.engine.injection.policies import has_experts
from distllm.engine.injection.weights import weight_of
from distllm.engine.quantization.config import QuantizationConfig, WeightScheme
from distllm.engine.quantization.naming import is_mlp, is_router
from distllm.engine.quantization.quantizer import check_divides
from distllm.engine.quantization.weight import QuantizedWeight

Schemes = Mapping[nn.Module, WeightScheme]
"""How the weight of a module is stored, of those that are quantized."""


def choose_schemes(model: PreTrainedModel, config: QuantizationConfig) -> Schemes:
    """The scheme of every weight that is multiplied with, but routers: they are small, and choose experts.

    Raises QuantizationError where groups do not divide a layer's inputs, naming the layer.
    """
    schemes: dict[nn.Module, WeightScheme] = {}
    vocabulary = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        if weight_of(module) is None and not has_experts(module):
            continue  # nothing of its own, or another stage's
        if module in vocabulary:
            schemes[module] = config.vocabulary
        elif is_quantizable(name, module):
            schemes[module] = config.mlp if is_mlp(name) else config.linear
            for weight, in_features in _inputs(name, module):
                check_divides(weight, in_features, schemes[module])
    return schemes


def choose_schemes_by_layer(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    configs: Sequence[QuantizationConfig | None],
    *,
    embeds: bool,
) -> Schemes:
    """The same of a stage, where each of its decoder `layers` has a config of its own, or None.

    The embedding of one that `embeds` is as the first of them, all other weights outside are as the last. Where an
    embedding and a head that are tied so come to differ, they are tied no more.
    """
    by_config = {config: choose_schemes(model, config) for config in set(configs) if config is not None}
    owners = {module: config for layer, config in zip(layers, configs, strict=True) for module in layer.modules()}
    if embeds:
        owners[model.get_input_embeddings()] = configs[0]
        if configs[0] != configs[-1]:
            _untie(model.get_input_embeddings(), model.get_output_embeddings())
    schemes: dict[nn.Module, WeightScheme] = {}
    for module in model.modules():
        config = owners.get(module, configs[-1])
        if config is not None and module in by_config[config]:
            schemes[module] = by_config[config][module]
    return schemes


def _untie(embedding: nn.Module, head: nn.Module | None) -> None:
    """Two weights in the place of one, of the same content, which is not copied."""
    weight = weight_of(embedding)
    if head is None or weight_of(head) is not weight:
        return
    if isinstance(weight, nn.Parameter):
        embedding.weight = nn.Parameter(weight.data, requires_grad=False)
    else:
        embedding.__dict__["weight"] = copy.copy(weight)


def is_quantizable(name: str, module: nn.Module) -> bool:
    """Whether the module called `name` multiplies with a weight that may be quantized."""
    return has_experts(module) or (type(module) in (nn.Linear, Conv1D) and not is_router(name))


def _inputs(name: str, module: nn.Module) -> Iterator[tuple[str, int]]:
    """Names and numbers of inputs of the module's weights."""
    if has_experts(module):
        for projection in PROJECTIONS:
            weights = getattr(module, projection, None)
            if isinstance(weights, nn.Parameter):
                yield f"{name}.{projection}", weights.shape[1 if module.is_transposed else 2]
            elif isinstance(weights, list):
                yield f"{name}.{projection}", weights[0].shape[1]
    elif not isinstance(weight := weight_of(module), QuantizedWeight | None):
        yield name, weight.shape[0 if isinstance(module, Conv1D) else 1]
