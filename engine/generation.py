"""What a checkpoint says about generating from it: where answers end and which sampling it was tuned for.

Importable without torch.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from distllm.engine.checkpoint import CheckpointError, read_json
from distllm.engine.sampling_params import InvalidParameter, SamplingParams

logger = logging.getLogger("distllm.engine")

_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")
_COUNTS = ("top_k", "max_new_tokens")


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

    End tokens that the vocabulary lacks are left out with a warning: no answer can hold them. Raises
    CheckpointError, naming file and field, for a file that is not JSON or a value that is unusable.
    """
    config = read_json(path / "config.json")
    generation_file = path / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    eos_ids = _stored_eos(
        (generation_file, generation), (path / "config.json", config), (path / "config.json", text)
    )
    eos_ids += [] if tokenizer_eos_id is None else [tokenizer_eos_id]
    return GenerationDefaults(
        eos_token_ids=_within(text.get("vocab_size"), eos_ids, path), **_sampling(generation, generation_file)
    )


def _stored_eos(*sources: tuple[Path, Mapping[str, Any]]) -> list[int]:
    """The end tokens of the first file that names any."""
    for file, values in sources:
        if (value := values.get("eos_token_id")) is not None:
            ids = value if isinstance(value, list) else [value]
            if any(type(token_id) is not int for token_id in ids):
                raise CheckpointError(f"{file}: eos_token_id must be a token id or a list of them, not {value!r}")
            return list(cast("list[int]", ids))
    return []


def _within(vocab_size: object, eos_ids: list[int], path: Path) -> tuple[int, ...]:
    """Without repetition, and without ids that the model cannot sample."""
    known = [token_id for token_id in eos_ids if not isinstance(vocab_size, int) or 0 <= token_id < vocab_size]
    if strange := sorted(set(eos_ids) - set(known)):
        logger.warning("%s: eos_token_id %s is not in the vocabulary of %s", path, strange[0], vocab_size)
    return tuple(dict.fromkeys(known))


def _sampling(generation: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The fields of GenerationDefaults that the file sets. A count of 0 or less means that there is none."""
    present = {name: generation[name] for name in (*_FLOATS, *_COUNTS) if generation.get(name) is not None}
    for name, value in present.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise CheckpointError(f"{file}: {name} must be a finite number, not {value!r}; mend it or take it out")
    values: dict[str, Any] = {name: float(present[name]) for name in _FLOATS if name in present}
    values |= {name: int(present[name]) for name in _COUNTS if present.get(name, 0) > 0}
    try:
        SamplingParams(**{name: value for name, value in values.items() if name != "max_new_tokens"})
    except InvalidParameter as error:
        wrong = generation[error.field]
        raise CheckpointError(f"{file}: {error}, not {wrong}; mend it or take it out") from None
    return values
