"""Random checkpoints in the shape of known models, for measuring: fast to make, the same every time."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.synthetic_tokenizer import END_OF_TEXT, synthetic_tokenizer

SMOLLM2_135M: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_MARK = "made.json"


def make_checkpoint(folder: Path, shape: dict[str, Any], seed: int = 0) -> Path:
    """A bf16 Llama checkpoint of `shape` in `folder`, unless it is already there. Returns `folder`.

    It knows no end of text, so every answer has exactly the tokens asked for, from every server.
    """
    recipe = {"shape": shape, "seed": seed}
    mark = folder / _MARK
    if mark.is_file() and json.loads(mark.read_text()) == recipe:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=None, dtype=torch.bfloat16)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer = synthetic_tokenizer(shape["vocab_size"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=END_OF_TEXT).save_pretrained(folder)
    mark.write_text(json.dumps(recipe))
    return folder
