"""Small checkpoints of many architectures, made from configs with fixed seeds, and runners that serve them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from distllm.engine.config import EngineConfig
from distllm.engine.factory import build_executor
from distllm.engine.interface import Executor
from distllm.engine.quantization.config import QuantizationConfig

VOCAB_SIZE = 131
NUM_BLOCKS = 40

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
    "original_max_position_embeddings": 64,
}

MODELS: Mapping[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-odd": ("Llama", {"hidden_size": 60, "intermediate_size": 77, "head_dim": 10, "attention_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "phi3": ("Phi3", {}),
    "phi3-longrope": (
        "Phi3",
        {"rope_parameters": _LONG_ROPE, "original_max_position_embeddings": 64},
    ),
    "gemma": ("Gemma", {"head_dim": 24}),
    "gemma2": ("Gemma2", {"head_dim": 20, "sliding_window": 10, "query_pre_attn_scalar": 24}),
    "gpt2": ("GPT2", {"n_inner": 96, "num_key_value_heads": None}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 48, "num_key_value_heads": None}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5, "num_key_value_heads": None}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "head_dim": 16,
        },
    ),
    "gemma3": ("Gemma3Text", {"head_dim": 20, "sliding_window": 10, "query_pre_attn_scalar": 24}),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 6,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 40,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
        },
    ),
    "phimoe": ("Phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}),
}
"""Class prefix and what differs from `_SHAPE` (None: left out), by the name that tests use."""


@dataclass(frozen=True)
class Served:
    """A checkpoint on disk and the executor that serves it."""

    path: Path
    executor: Executor


def make_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The architecture with weights large enough for attention and experts to matter, float32."""
    prefix, special = MODELS[name]
    fields = {name: value for name, value in {**_SHAPE, **special}.items() if value is not None}
    config: PreTrainedConfig = getattr(transformers, f"{prefix}Config")(**fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # sinks and router biases keep what they begin with
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(noise * 0.1)
    return model.eval()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of the named model's checkpoint, stored as float32."""

    @cache
    def make(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        make_model(name).save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def plain_logits(checkpoint: Callable[[str], Path]) -> Callable[[str, tuple[int, ...]], Tensor]:
    """Logits of every token of a sequence by transformers' own forward: [num_tokens, vocab_size]."""

    @cache
    def load(name: str) -> PreTrainedModel:
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint(name), dtype=torch.float32, attn_implementation="eager"
        )
        return model.eval()

    @cache
    def compute(name: str, token_ids: tuple[int, ...]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = load(name)(torch.tensor([token_ids]), use_cache=False).logits[0]
        return logits

    return compute


@pytest.fixture(scope="session")
def serve(checkpoint: Callable[[str], Path]) -> Callable[..., Served]:
    """Builds the executor of a named model once for each configuration."""

    @cache
    def build(
        name: str,
        dtype: str = "float32",
        backend: str = "auto",
        device: str = "cpu",
        quantization: QuantizationConfig | None = None,
        kv_cache_dtype: str = "auto",
    ) -> Served:
        path = checkpoint(name)
        config = EngineConfig(
            model=str(path),
            device=device,  # type: ignore[arg-type]
            dtype=dtype,  # type: ignore[arg-type]
            attention_backend=backend,  # type: ignore[arg-type]
            max_model_len=128,
            num_blocks=NUM_BLOCKS,
            num_threads=2,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]
        )
        return Served(path, build_executor(config, lambda _activity, _fraction: None))

    return build
