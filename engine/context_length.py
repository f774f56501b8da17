"""The longest sequence that a model supports, from its config. Importable without torch."""

from collections.abc import Mapping
from typing import Any

_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")


def supported_length(config: Mapping[str, Any]) -> int | None:
    """What config.json promises, scaled as rotary scaling asks where the config leaves that to the reader.

    None where the config names no limit. Only `linear`, `dynamic` and `yarn` scaling may leave the length before
    scaling in max_position_embeddings.
    """
    lengths = [int(config[name]) for name in _FIELDS if isinstance(config.get(name), int)]
    if not lengths:
        return None
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "dynamic") and "original_max_position_embeddings" not in scaling:
        return int(lengths[0] * float(scaling.get("factor", 1.0)))
    if kind == "yarn" and "original_max_position_embeddings" in scaling:
        original = int(scaling["original_max_position_embeddings"])
        return max(lengths[0], int(original * float(scaling.get("factor", 1.0))))
    return lengths[0]


def resolve_length(asked: int | None, supported: int | None) -> int:
    """The length to serve. Raises ValueError naming the flag."""
    if asked is None:
        if supported is None:
            raise ValueError("the model's config names no longest sequence: give --max-model-len")
        return supported
    if supported is not None and asked > supported:
        raise ValueError(f"--max-model-len {asked} is beyond the {supported} tokens that the model supports")
    return asked
