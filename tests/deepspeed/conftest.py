"""A decoder in memory that two ranks and groups of 128 weights divide, and the embedded model's tokenizer."""

import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from distllm.engine.embedded import checkpoint_path


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(checkpoint_path())


def make_decoder(seed: int = 0, hidden_size: int = 256, intermediate_size: int = 512) -> LlamaForCausalLM:
    """Two layers, float32; its text is noise."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=2560,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=2,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()
