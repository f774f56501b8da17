"""What a decoder keeps for each token in its KV cache, read from config.json alone. Importable without torch.

An estimate for plans: the engine itself measures the shapes on the loaded model.
"""

from collections.abc import Mapping
from typing import Any


def kv_elements_per_token(config: Mapping[str, Any]) -> int:
    """Elements of keys and values over all layers. Raises KeyError for a config without the usual fields."""
    num_layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    num_heads = _first(config, "num_attention_heads", "n_head", "num_heads")
    if config.get("kv_lora_rank"):
        key_dim = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
        return int(num_layers * num_heads * (key_dim + config["v_head_dim"]))
    num_kv_heads = 1 if config.get("multi_query") else config.get("num_key_value_heads") or num_heads
    head_dim = config.get("head_dim") or _first(config, "hidden_size", "n_embd", "d_model") // num_heads
    return int(num_layers * num_kv_heads * 2 * head_dim)


def _first(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if config.get(name) is not None:
            return int(config[name])
    raise KeyError(names[0])
