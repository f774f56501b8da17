"""Values of config.json that no model can have, found before a model class chokes on them. Never imports torch."""

from collections.abc import Mapping
from typing import Any

from distllm.engine.checkpoint import Checkpoint, CheckpointError

_LEAST: Mapping[str, int] = {
    "vocab_size": 1,
    "hidden_size": 1,
    "n_embd": 1,
    "num_hidden_layers": 1,
    "n_layer": 1,
    "num_attention_heads": 1,
    "n_head": 1,
    "num_key_value_heads": 1,
    "head_dim": 1,
    "intermediate_size": 0,  # of a model whose every layer has experts
    "max_position_embeddings": 1,
    "n_positions": 1,
}
"""The least that a size may be, where the config names it and it is not null."""


def check_config(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError, naming the field, for a size that is none or a model type that is no name."""
    file = checkpoint.path / "config.json"
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{file}: model_type must name an architecture, not {model_type!r}")
    if not isinstance(checkpoint.config.get("text_config", {}), dict | None):
        raise CheckpointError(f"{file}: text_config must be an object")
    for name, least in _LEAST.items():
        _check_size(f"{file}: {name}", checkpoint.text_config.get(name), least)


def _check_size(name: str, value: Any, least: int) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not value >= least:
        raise CheckpointError(f"{name} must be at least {least}, not {value}")
