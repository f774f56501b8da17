"""Says of each module of a model, loaded without contents, how its weight will be kept: in whole or in codes."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from distllm.engine.injection.packed_experts import PROJECTIONS
from distllm.engine.injection.policies import has_experts, is_packed, projections_to_fuse
from distllm.engine.injection.quantizing import Schemes
from distllm.engine.injection.weights import Weight, weight_of
from distllm.engine.quantization.tensor import go_together
from distllm.engine.quantization.weight import QuantizedWeight


def weight_kinds(model: PreTrainedModel, schemes: Schemes, stored: str | None) -> Mapping[str, tuple[str, Weight]]:
    """Such as w4g32, `stored` or bfloat16 by a module's name, of those that are multiplied with, and the weight.

    An embedding is among them where it is quantized, or has the output head's weight.
    """
    head = model.get_output_embeddings()
    shared = None if head is None else weight_of(head)
    kinds = {}
    for name, module in model.named_modules():
        is_listed = isinstance(module, nn.Embedding) and (module in schemes or weight_of(module) is shared)
        weight = _expert_weight(module) if has_experts(module) else weight_of(module)
        if weight is not None and (has_experts(module) or is_packed(module) or is_listed):
            kinds[name] = (_kind(module, weight, schemes, stored), weight)
    return kinds


def modules_kept_apart(model: PreTrainedModel, schemes: Schemes) -> frozenset[str]:
    """Names of the modules whose projections could be one product, and are stored in too different ways for it."""
    return frozenset(
        name
        for name, module in model.named_modules()
        if (layers := projections_to_fuse(module)) and layers[0] not in schemes and not _go_together(layers)
    )


def _go_together(layers: Sequence[nn.Module]) -> bool:
    weights = [weight_of(layer) for layer in layers]
    quantized = [weight.load() for weight in weights if isinstance(weight, QuantizedWeight)]
    return not quantized or (len(quantized) == len(weights) and go_together(quantized))


def _expert_weight(module: nn.Module) -> Weight | None:
    """That of a first expert, or of all in one."""
    for name in PROJECTIONS:
        weight = getattr(module, name, None)
        if weight is not None:
            found = weight[0]
            return found if isinstance(found, Tensor | QuantizedWeight) else None
    return None


def _kind(module: nn.Module, weight: Weight, schemes: Schemes, stored: str | None) -> str:
    if module in schemes:
        return schemes[module].name
    if isinstance(weight, QuantizedWeight):
        assert stored is not None
        return stored
    return str(weight.dtype).removeprefix("torch.")
