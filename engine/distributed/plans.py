"""The sharding plans: which inner dimension of which module is divided over the ranks. Data; no torch.

A block is a module that computes on its own part of an inner dimension (heads, or features of an MLP) from whole
inputs, and whose last layer brings partial sums of whole outputs: one all-reduce a block. Everything that no block
names is whole on every rank, but for the vocabulary, which is divided for the embedding and the output head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto


class Axis(Enum):
    """What is divided. `INNER` counts the inputs of the block's last layer that are not heads."""

    QUERY_HEADS = auto()
    KV_HEADS = auto()
    INNER = auto()


@dataclass(frozen=True, slots=True)
class Block:
    """One kind of module, found by the names of its children or parameters.

    `columns` names what has its outputs divided, and the axes that lie one after the other in them; an output
    feature of an axis may be several long (a head's dimensions, interleaved gates). `row` has its inputs divided by
    `row_axis`. `vectors` are parameters whose first dimension is divided. `optional` columns may be missing.
    """

    columns: Mapping[str, tuple[Axis, ...]]
    row: str
    row_axis: Axis
    vectors: Mapping[str, Axis] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    is_experts: bool = False


Q, KV, INNER = Axis.QUERY_HEADS, Axis.KV_HEADS, Axis.INNER

ATTENTION = Block({"q_proj": (Q,), "k_proj": (KV,), "v_proj": (KV,)}, "o_proj", Q)
FUSED_ATTENTION = Block({"qkv_proj": (Q, KV, KV)}, "o_proj", Q)
SINK_ATTENTION = Block(ATTENTION.columns, "o_proj", Q, vectors={"sinks": Q})
LATENT_ATTENTION = Block(
    {"q_proj": (Q,), "q_b_proj": (Q,), "kv_b_proj": (Q,)}, "o_proj", Q, optional=frozenset({"q_proj", "q_b_proj"})
)
GATED_MLP = Block({"gate_proj": (INNER,), "up_proj": (INNER,)}, "down_proj", INNER)
FUSED_GATED_MLP = Block({"gate_up_proj": (INNER, INNER)}, "down_proj", INNER)
PLAIN_MLP = Block({"up_proj": (INNER,)}, "down_proj", INNER)
EXPERTS = Block({"gate_up_proj": (INNER, INNER)}, "down_proj", INNER, is_experts=True)
INTERLEAVED_EXPERTS = Block({"gate_up_proj": (INNER,)}, "down_proj", INNER, is_experts=True)

LLAMA = (ATTENTION, GATED_MLP)
LLAMA_MOE = (ATTENTION, GATED_MLP, EXPERTS)
GPT2 = (Block({"c_attn": (Q, Q, Q)}, "c_proj", Q), Block({"c_fc": (INNER,)}, "c_proj", INNER))
OPT = (
    Block({"q_proj": (Q,), "k_proj": (Q,), "v_proj": (Q,)}, "out_proj", Q),
    Block({"fc1": (INNER,)}, "fc2", INNER),
)
GPT_NEOX = (
    Block({"query_key_value": (Q,)}, "dense", Q),
    Block({"dense_h_to_4h": (INNER,)}, "dense_4h_to_h", INNER),
)

PLANS: Mapping[str, tuple[Block, ...]] = {
    "arcee": (ATTENTION, PLAIN_MLP),
    "deepseek_v2": (LATENT_ATTENTION, GATED_MLP, EXPERTS),
    "deepseek_v3": (LATENT_ATTENTION, GATED_MLP, EXPERTS),
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "gpt_oss": (SINK_ATTENTION, INTERLEAVED_EXPERTS),
    "granite": LLAMA,
    "helium": LLAMA,
    "llama": LLAMA,
    "ministral": LLAMA,
    "mistral": LLAMA,
    "mixtral": (ATTENTION, EXPERTS),
    "opt": OPT,
    "phi3": (FUSED_ATTENTION, FUSED_GATED_MLP),
    "phimoe": (ATTENTION, EXPERTS),
    "qwen2": LLAMA,
    "qwen2_moe": LLAMA_MOE,
    "qwen3": LLAMA,
    "qwen3_moe": LLAMA_MOE,
    "smollm3": LLAMA,
    "starcoder2": (ATTENTION, Block({"c_fc": (INNER,)}, "c_proj", INNER)),
}
"""Blocks by the model type of config.json."""
