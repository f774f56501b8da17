"""What a checkpoint says about generating from it: where answers end and which sampling it was tuned for.

Importable without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from distllm.engine.checkpoint import CheckpointError, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling for requests that do not say, as vLLM reads generation_config.json: `do_sample` plays no part.

    `eos_token_ids` unite generation_config.json (else config.json) and the tokenizer. `max_new_tokens` bounds
    requests that give no max_tokens.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None


def load_generation_defaults(path: Path, tokenizer_eos_id: int | None = None) -> GenerationDefaults:
    """Read a checkpoint directory; a missing generation_config.json leaves the neutral values.

    Raises CheckpointError for a file that is not JSON or a value of the wrong type.
    """
    config = read_json(path / "config.json")
    generation_file = path / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    nested = config.get("text_config")
    sources = (generation, config, nested if isinstance(nested, dict) else {})
    stored: object = next(
        (source["eos_token_id"] for source in sources if source.get("eos_token_id") is not None), []
    )
    eos_ids = [*_as_ids(stored), *([] if tokenizer_eos_id is None else [tokenizer_eos_id])]
    return GenerationDefaults(eos_token_ids=tuple(dict.fromkeys(eos_ids)), **_sampling(generation))


def _as_ids(value: object) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    if any(type(token_id) is not int for token_id in ids):
        raise CheckpointError(f"eos_token_id must be a token id or a list of them, not {value!r}")
    return cast("list[int]", ids)


def _sampling(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of GenerationDefaults that the file gives a usable value."""
    values: dict[str, Any] = {
        name: float(generation[name])
        for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        if _is_number(generation.get(name))
    }
    if _is_number(generation.get("top_k")) and generation["top_k"] > 0:
        values["top_k"] = int(generation["top_k"])
    if _is_number(generation.get("max_new_tokens")) and generation["max_new_tokens"] > 0:
        values["max_new_tokens"] = int(generation["max_new_tokens"])
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
