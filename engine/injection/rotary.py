"""Makes rotary embeddings depend on a token's position alone.

transformers' `dynamic` and `longrope` change the frequencies of a whole batch by its longest position. A server's
batch mixes sequences, so the frequencies are fixed once, to those of the longest sequence that it serves.
"""

import logging
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("distllm.engine")


def freeze_rotary(model: nn.Module, max_model_len: int) -> None:
    """Fix the frequencies of every rotary embedding of `model` to those for `max_model_len` tokens.

    Says so where it changes what the model computes.
    """
    module: Any
    num_fixed = 0
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, str) and _varies(rope_type):
            _touch(module, max_model_len)
            module.rope_type = "default"
            num_fixed += 1
        elif isinstance(rope_type, dict) and any(_varies(kind) for kind in rope_type.values()):
            for layer_type in rope_type:
                _touch(module, max_model_len, layer_type=layer_type)
            module.rope_type = dict.fromkeys(rope_type, "default")
            num_fixed += 1
    if num_fixed:
        logger.info(
            "the rotary scaling, which depends on the length, is fixed to that of %d tokens; "
            "a lower --max-model-len suits shorter texts better",
            max_model_len,
        )


def _varies(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"


def _touch(module: nn.Module, max_model_len: int, **kwargs: str) -> None:
    """Let the module see the last position, upon which it sets its frequencies."""
    device = next(module.buffers()).device
    last = torch.tensor([[max_model_len - 1]], device=device)
    module(torch.zeros(1, device=device), last, **kwargs)
