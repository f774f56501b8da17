"""Weights where there are no kernels: each is read, and quantized if it is to be, in its place and in its turn."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.injection.mapped_pages import MappedPages
from distllm.engine.injection.packed_experts import EXPERTS_NAME, PROJECTIONS, register_experts
from distllm.engine.injection.policies import has_experts
from distllm.engine.injection.quantizing import Schemes
from distllm.engine.injection.unread_weight import UnreadWeight
from distllm.engine.quantization.config import WeightScheme
from distllm.engine.quantization.quantizer import quantize
from distllm.engine.quantization.weight import QuantizedWeight

_ALIGNMENT = 64

OnPlain = Callable[[nn.Module], object]
"""Called with each module, in the order of the model's, when its own weights are what they will be."""


def leave_plain(module: nn.Module) -> None:
    """The OnPlain of weights that stay where they are."""


@torch.inference_mode()
def place_plain_weights(model: PreTrainedModel, schemes: Schemes, on_plain: OnPlain = leave_plain) -> None:
    """Replace the weights that `schemes` names by quantized ones in plain torch, and unread ones by parameters.

    Products do not depend on where a file has a weight: what is not aligned there is copied. `on_plain` may move a
    module's weights elsewhere before the next ones are read.
    """
    register_experts()
    tied = _shared(model)
    pages = MappedPages()
    for module in model.modules():
        scheme = schemes.get(module)
        if scheme is None:
            _read(module)
            _align(module, pages)
        elif has_experts(module):
            _quantize_experts(module, scheme)
        else:
            _quantize(module, scheme, tied)
        on_plain(module)
    experts = [module for module in model.modules() if has_experts(module)]
    if any(isinstance(module.down_proj, list) for module in experts):
        model.set_experts_implementation(EXPERTS_NAME)
    elif experts:
        model.set_experts_implementation(model.get_correct_experts_implementation(None))


def _read(module: nn.Module) -> None:
    """Make parameters of a module's unread weights."""
    weight = module.__dict__.get("weight")
    if isinstance(weight, UnreadWeight):
        del module.__dict__["weight"]
        module.weight = nn.Parameter(weight.load(), requires_grad=False)
    for name in PROJECTIONS if has_experts(module) else ():
        weights = module.__dict__.get(name)
        if isinstance(weights, list) and isinstance(weights[0], UnreadWeight):
            del module.__dict__[name]
            setattr(module, name, nn.Parameter(_stack(weights, bool(module.is_transposed)), requires_grad=False))


def _align(module: nn.Module, pages: MappedPages) -> None:
    """Copy float32 weights that lie at an odd place of a file, in place, so that tied ones stay tied.

    MKL's sums for a single row are taken in another order where a weight begins off 16 bytes, at least on AMD's
    processors, and half of all safetensors files begin there. A layer that streams lies on whole pages.
    """
    for weight in module._parameters.values():
        if weight is not None and weight.dim() > 1 and weight.dtype == torch.float32:
            stored = weight.data
            if stored.data_ptr() % _ALIGNMENT:
                weight.data = stored.clone()
                pages.forget(stored)


def _stack(weights: list[UnreadWeight], is_transposed: bool) -> Tensor:
    """[num_experts, out_features, in_features], or the last two the other way round."""
    rows, columns = weights[0].shape
    stacked = torch.empty(
        len(weights), *((columns, rows) if is_transposed else (rows, columns)), dtype=weights[0].dtype
    )
    for number, weight in enumerate(weights):
        stacked[number] = weight.load().T if is_transposed else weight.load()
    return stacked


def _quantize(module: nn.Module, scheme: WeightScheme, tied: dict[int, QuantizedWeight | None]) -> None:
    """`tied` has what became of shared weights so far, by identity, so that they stay tied."""
    is_transposed = isinstance(module, Conv1D)
    unread = module.__dict__.pop("weight", None)
    weight = unread.load() if isinstance(unread, UnreadWeight) else module._parameters.pop("weight")
    assert weight is not None
    quantized = tied.get(id(weight))
    if quantized is None:
        tensor = quantize(weight.T if is_transposed else weight, scheme)
        quantized = QuantizedWeight.of(tensor, is_transposed=is_transposed)
    if id(weight) in tied:
        tied[id(weight)] = quantized
    module.weight = quantized  # type: ignore[assignment]


def _quantize_experts(module: nn.Module, scheme: WeightScheme) -> None:
    for name in PROJECTIONS:
        unread, weights = module.__dict__.get(name), module._parameters.pop(name, None)
        if weights is not None:
            rows = (weight.T if module.is_transposed else weight for weight in weights)
        elif isinstance(unread, list):
            rows = (weight.load() for weight in unread)
        else:
            continue
        setattr(module, name, [QuantizedWeight.of(quantize(weight, scheme)) for weight in rows])


def _shared(model: nn.Module) -> dict[int, QuantizedWeight | None]:
    """Identities of the parameters that several modules have."""
    users = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    return {identity: None for identity, count in users.items() if count > 1 and identity != id(None)}
