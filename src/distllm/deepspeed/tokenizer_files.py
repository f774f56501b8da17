"""Puts a tokenizer in memory beside a model's weights, in files that the engine's front end reads."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distllm.deepspeed.refusal import InvalidOption
from distllm.server.slow_tokenizer import TokenizerError, fast_tokenizer_directory


def check_tokenizer(tokenizer: object) -> None:
    """It is one of transformers', or None. Raises InvalidOption."""
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        kind = type(tokenizer)
        remedy = {
            "str": "give AutoTokenizer.from_pretrained of that path",
            "Tokenizer": "give PreTrainedTokenizerFast(tokenizer_object=...) of it",
        }.get(kind.__name__, "give one that AutoTokenizer loads")
        raise InvalidOption("tokenizer", f"must be a tokenizer of transformers, not a {kind.__name__}: {remedy}")


def save_tokenizer(tokenizer: Any, path: Path) -> None:
    """Raises InvalidOption for one that cannot be read again from what it saves."""
    tokenizer.save_pretrained(path)
    try:
        with fast_tokenizer_directory(path):
            pass
    except TokenizerError as error:
        reason = str(error).replace(str(path), "what it saves")
        raise InvalidOption(
            "tokenizer", f"is a {type(tokenizer).__name__}, and cannot be served: {reason}"
        ) from None


def find_tokenizer(origin: str | Path) -> Any:
    """The tokenizer beside the files that a model was loaded from. Raises InvalidOption where there are none."""
    try:
        return AutoTokenizer.from_pretrained(origin, local_files_only=True)
    except Exception:  # whatever transformers raises for a place without one
        raise InvalidOption("tokenizer", "is missing, and the model's own place has none: give one") from None
