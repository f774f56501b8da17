"""Which of transformers' module classes are replaced by what. Names, so that no model is imported for the table."""

from collections.abc import Mapping

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from distllm.engine.kernels.decoder_layer import Activation
from distllm.engine.kernels.ops import NormStyle

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")

ROTARY_ATTENTION = frozenset(
    {
        "ArceeAttention",
        "GemmaAttention",
        "Gemma2Attention",
        "GraniteAttention",
        "GraniteMoeAttention",
        "LlamaAttention",
        "MinistralAttention",
        "MistralAttention",
        "MixtralAttention",
        "Qwen2Attention",
        "Qwen2MoeAttention",
        "Qwen3Attention",
        "Qwen3MoeAttention",
    }
)
"""q, k and v by three linear layers, norms of q and k heads if any, rotary by halves, one more linear layer."""

GATED_MLP = frozenset(
    {
        "CohereMLP",
        "Cohere2MLP",
        "DeepseekV2MLP",
        "DeepseekV3MLP",
        "Ernie4_5MLP",
        "GemmaMLP",
        "Gemma2MLP",
        "Gemma3MLP",
        "GraniteMLP",
        "HeliumMLP",
        "LlamaMLP",
        "MinistralMLP",
        "MistralMLP",
        "OlmoMLP",
        "Olmo2MLP",
        "Olmo3MLP",
        "Qwen2MLP",
        "Qwen2MoeMLP",
        "Qwen3MLP",
        "Qwen3MoeMLP",
        "SmolLM3MLP",
        "StableLmMLP",
    }
)
"""down_proj(act_fn(gate_proj(x)) * up_proj(x))"""

DECODER_LAYER = frozenset(
    {
        "GemmaDecoderLayer",
        "LlamaDecoderLayer",
        "MinistralDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
    }
)
"""h = x + self_attn(input_layernorm(x)); h + mlp(post_attention_layernorm(h)). Gives h alone, not a tuple."""

RMS_NORM: Mapping[str, NormStyle] = {
    "GemmaRMSNorm": "gemma",
    "Gemma2RMSNorm": "gemma",
    "Gemma3RMSNorm": "gemma",
    "ArceeRMSNorm": "llama",
    "DeepseekV2RMSNorm": "llama",
    "DeepseekV3RMSNorm": "llama",
    "GraniteRMSNorm": "llama",
    "GraniteMoeRMSNorm": "llama",
    "LlamaRMSNorm": "llama",
    "MinistralRMSNorm": "llama",
    "MistralRMSNorm": "llama",
    "MixtralRMSNorm": "llama",
    "Phi3RMSNorm": "llama",
    "Qwen2RMSNorm": "llama",
    "Qwen2MoeRMSNorm": "llama",
    "Qwen3RMSNorm": "llama",
    "Qwen3MoeRMSNorm": "llama",
    "SmolLM3RMSNorm": "llama",
}
"""Norms by the root of the mean square, and how their weight enters."""

GATED_ACTIVATIONS: Mapping[str, Activation] = {
    "SiLUActivation": "silu_mul",
    "SiLU": "silu_mul",
    "GELUTanh": "gelu_tanh_mul",
}
"""Activation modules, and the kernel that does the activation and the product of a gated MLP."""


def projections_to_fuse(module: nn.Module) -> list[nn.Linear]:
    """The linear layers of `module` that read one input and may be packed as one weight; [] if there are none."""
    name = type(module).__name__
    names = QKV if name in ROTARY_ATTENTION else GATE_UP if name in GATED_MLP else ()
    layers = [getattr(module, child) for child in names]
    has_bias = {layer.bias is not None for layer in layers}
    is_fusible = all(type(layer) is nn.Linear for layer in layers) and len(has_bias) == 1
    return layers if is_fusible else []


def why_not_fused_attention(module: nn.Module, has_equal_dims: bool) -> str | None:
    """Why an attention module keeps transformers' forward; None where one fused module takes its place.

    `has_equal_dims` says whether its keys are as long as its values.
    """
    name = type(module).__name__
    if name not in ROTARY_ATTENTION:
        return f"no policy for {name}"
    return None if projections_to_fuse(module) and has_equal_dims else "its projections cannot be one product"


def why_not_fused_mlp(module: nn.Module) -> str | None:
    """Why an MLP keeps transformers' forward; None where one fused module takes its place."""
    name = type(module).__name__
    if name not in GATED_MLP:
        return f"no policy for {name}"
    activation = type(module.act_fn).__name__
    if activation not in GATED_ACTIVATIONS:
        return f"no kernel for {activation}"
    return None if projections_to_fuse(module) else "its projections cannot be one product"


def is_activation(module: nn.Module) -> bool:
    """Whether `module` is an elementwise function without parameters."""
    kind = type(module)
    return kind.__module__ == "transformers.activations" or kind in (nn.GELU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Tanh)


def has_gated_activation(module: nn.Module) -> bool:
    """Whether `module` is an MLP with an activation of its own; experts are none."""
    return hasattr(module, "act_fn") and hasattr(module, "down_proj") and not has_experts(module)


def is_packed(module: nn.Module) -> bool:
    """Whether the kernels multiply with the weight of `module`."""
    return isinstance(module, Conv1D) or type(module) is nn.Linear or is_router(module)


def is_router(module: nn.Module) -> bool:
    """Whether `module` scores experts by a weight of its own, without an nn.Linear."""
    weight = module._parameters.get("weight")
    return isinstance(weight, Tensor) and weight.dim() == 2 and type(module).__name__.endswith(("Router", "Gate"))


def has_experts(module: nn.Module) -> bool:
    """Whether `module` keeps the weights of all its experts, behind transformers' ExpertsInterface."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "down_proj")
