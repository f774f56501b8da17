"""A transformer block to read and to build on, and a decoder of such blocks.

It shows what the engine asks of a layer: attention that goes through transformers' attention interface and takes
its numbers of heads from the shapes it meets, and linear layers in the order in which they are used, so that the
last of each parent is the one whose outputs are added up over ranks. Its type has no sharding plan: POLICY makes
one.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaModel,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

POLICY = {"ShardedTransformerBlock": ("attention.o_proj", "mlp.down_proj")}
"""The injection policy that divides a decoder of these blocks over ranks."""


class ShardedConfig(LlamaConfig):  # type: ignore[misc]
    """Llama's fields, under a model type of its own."""

    model_type = "distllm_sharded"


class ShardedAttention(nn.Module):
    """Grouped-query attention with rotary positions: q_proj, k_proj and v_proj by heads, then o_proj."""

    def __init__(self, config: ShardedConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.is_causal = True
        query_size = config.num_attention_heads * self.head_dim
        key_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Tensor | None, **rest: Any
    ) -> Tensor:
        """[batch, tokens, hidden] -> the same; on a rank the heads are those that its weights have."""
        heads = (*x.shape[:-1], -1, self.head_dim)
        query = self.q_proj(x).view(heads).transpose(1, 2)  # [batch, heads, tokens, head_dim]
        key = self.k_proj(x).view(heads).transpose(1, 2)
        value = self.v_proj(x).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if (cache := rest.pop("past_key_values", None)) is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, _ = attend(self, query, key, value, mask, scaling=self.scaling, dropout=0.0, **rest)
        out: Tensor = self.o_proj(attended.reshape(*x.shape[:-1], -1))
        return out


class ShardedMLP(nn.Module):
    """A gated MLP: gate_proj and up_proj by features, then down_proj."""

    def __init__(self, config: ShardedConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]"""
        out: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class ShardedTransformerBlock(nn.Module):
    """A layer of a decoder: `attention` (q_proj, k_proj, v_proj, o_proj), `mlp` (gate_proj, up_proj, down_proj).

    Usable under {ShardedTransformerBlock: ["attention.o_proj", "mlp.down_proj"]}, and within ShardedForCausalLM.
    """

    def __init__(self, config: ShardedConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.attention_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = ShardedAttention(config, layer_idx)
        self.mlp_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ShardedMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        **rest: Any,
    ) -> Tensor:
        """[batch, tokens, hidden] -> the same. Both halves add to what came in, each after a norm of its own.

        `position_embeddings` are cosines and sines, [batch, tokens, head_dim] each.
        """
        normed = self.attention_norm(hidden_states)
        hidden_states = hidden_states + self.attention(normed, position_embeddings, attention_mask, **rest)
        out: Tensor = hidden_states + self.mlp(self.mlp_norm(hidden_states))
        return out


class ShardedModel(LlamaModel):  # type: ignore[misc]
    """Llama's decoder with reference blocks for layers."""

    config_class = ShardedConfig
    _no_split_modules = ("ShardedTransformerBlock",)

    def __init__(self, config: ShardedConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            ShardedTransformerBlock(config, index) for index in range(config.num_hidden_layers)
        )
        self.post_init()


class ShardedForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """A language model of reference blocks."""

    config_class = ShardedConfig

    def __init__(self, config: ShardedConfig) -> None:
        super().__init__(config)
        self.model = ShardedModel(config)
        self.post_init()


def register_reference_model() -> None:
    """Let transformers' Auto classes know the decoder of reference blocks."""
    AutoConfig.register(ShardedConfig.model_type, ShardedConfig, exist_ok=True)
    AutoModelForCausalLM.register(ShardedConfig, ShardedForCausalLM, exist_ok=True)
