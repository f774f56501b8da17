"""Chooses how each weight of a model is quantized, and quantizes them in place where there are no kernels."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.injection.packed_experts import EXPERTS_NAME, PROJECTIONS, register_experts
from distllm.engine.injection.policies import has_experts
from distllm.engine.quantization.config import QuantizationConfig, WeightScheme
from distllm.engine.quantization.naming import is_mlp, is_router
from distllm.engine.quantization.quantizer import check_divides, quantize
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
        if module in vocabulary:
            schemes[module] = config.vocabulary
        elif is_quantizable(name, module):
            schemes[module] = config.mlp if is_mlp(name) else config.linear
            for weight, in_features in _inputs(name, module):
                check_divides(weight, in_features, schemes[module])
    return schemes


def is_quantizable(name: str, module: nn.Module) -> bool:
    """Whether the module called `name` multiplies with a weight that may be quantized."""
    return has_experts(module) or (type(module) in (nn.Linear, Conv1D) and not is_router(name))


OnPlain = Callable[[nn.Module], object]
"""Called with each module, in the order of the model's, when its own weights are what they will be."""


def leave_plain(module: nn.Module) -> None:
    """The OnPlain of weights that stay where they are."""


@torch.inference_mode()
def quantize_weights(model: PreTrainedModel, schemes: Schemes, on_plain: OnPlain = leave_plain) -> None:
    """Replace the weights that `schemes` names by quantized ones in plain torch.

    `on_plain` may move a module's weights elsewhere before the next ones are quantized.
    """
    register_experts()
    replaced: dict[int, QuantizedWeight] = {}
    for module in model.modules():
        scheme = schemes.get(module)
        if scheme is not None and has_experts(module):
            _quantize_experts(module, scheme)
        elif scheme is not None:
            _quantize(module, scheme, replaced)
        on_plain(module)
    if any(has_experts(module) for module in schemes):
        model.set_experts_implementation(EXPERTS_NAME)


def _quantize(module: nn.Module, scheme: WeightScheme, replaced: dict[int, QuantizedWeight]) -> None:
    """`replaced` has what became of weights so far, so that tied ones stay tied."""
    weight = module._parameters.pop("weight")
    assert weight is not None
    is_transposed = isinstance(module, Conv1D)
    if id(weight) not in replaced:
        tensor = quantize(weight.T if is_transposed else weight, scheme)
        replaced[id(weight)] = QuantizedWeight.of(tensor, is_transposed=is_transposed)
    module.weight = replaced[id(weight)]  # type: ignore[assignment]


def _quantize_experts(module: nn.Module, scheme: WeightScheme) -> None:
    for name in PROJECTIONS:
        weights = module._parameters.pop(name, None)
        if weights is not None:
            tensors = [quantize(weight.T if module.is_transposed else weight, scheme) for weight in weights]
            setattr(module, name, [QuantizedWeight.of(tensor) for tensor in tensors])


def _inputs(name: str, module: nn.Module) -> Iterator[tuple[str, int]]:
    """Names and numbers of inputs of the module's weights."""
    if has_experts(module):
        for projection in PROJECTIONS:
            weights = module._parameters.get(projection)
            if weights is not None:
                yield f"{name}.{projection}", weights.shape[1 if module.is_transposed else 2]
    elif isinstance(weight := module._parameters.get("weight"), nn.Parameter):
        yield name, weight.shape[0 if isinstance(module, Conv1D) else 1]
