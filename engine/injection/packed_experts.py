"""Mixture of experts on packed weights: a token's experts are summed in one order, whatever is in the batch.

The same for quantized weights in plain torch, which project as packed ones do.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.injection.unread_weight import UnreadWeight
from distllm.engine.injection.weights import Weight
from distllm.engine.quantization.weight import QuantizedWeight

EXPERTS_NAME = "distllm_packed"
PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")


def register_experts() -> None:
    """Make `EXPERTS_NAME` known to transformers."""
    ExpertsInterface.register(EXPERTS_NAME, _forward)


def pack_experts(module: nn.Module, pack: Callable[[Weight], PackedWeight]) -> None:
    """Replace the experts' weights by lists of packed ones."""
    for name in PROJECTIONS:
        weights = module._parameters.get(name)
        if weights is not None:
            packed = [pack(weight.T if module.is_transposed else weight) for weight in weights]
            del module._parameters[name], weights
            setattr(module, name, packed)
        elif isinstance(of_experts := module.__dict__.get(name), list):
            setattr(module, name, [pack(weight) for weight in of_experts])


def _forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """hidden_states [num_tokens, hidden], top_k_* [num_tokens, k] -> [num_tokens, hidden].

    A token's contributions are added in the order of its k choices.
    """
    num_tokens, top_k = top_k_index.shape
    contributions = hidden_states.new_empty(num_tokens * top_k, hidden_states.shape[-1])
    for expert, slots in _slots_by_expert(top_k_index):
        contributions[slots] = _run_expert(module, expert, hidden_states[slots // top_k])
    weighted = contributions.view(num_tokens, top_k, -1) * top_k_weights.unsqueeze(-1)
    total = weighted[:, 0]
    for choice in range(1, top_k):
        total = total + weighted[:, choice]
    return total.to(hidden_states.dtype)


def _slots_by_expert(top_k_index: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each expert that was chosen, with the places in the flattened `top_k_index` that chose it."""
    order = top_k_index.reshape(-1).argsort(stable=True)
    start = 0
    for expert, count in enumerate(top_k_index.reshape(-1).bincount().tolist()):
        if count:
            yield expert, order[start : start + count]
        start += count


def _run_expert(module: Any, expert: int, x: Tensor) -> Tensor:
    name = "gate_up_proj" if module.has_gate else "up_proj"
    inner = _project(module, name, expert, x)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    output = _project(module, "down_proj", expert, inner)
    return module.post_expert_norm(output) if module.has_post_expert_norm else output


def _project(module: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight: PackedWeight | QuantizedWeight | UnreadWeight | Tensor = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    if isinstance(weight, Tensor):  # of a layer that is not quantized, where others are
        return nn.functional.linear(x, weight.T if module.is_transposed else weight, bias)
    return weight.project(x, bias)
