"""Parsers of fields that come in several forms. Each turns a JSON value into one typed value or raises
InvalidRequest naming the field."""

from typing import Any

from distllm.server.errors import InvalidRequest, shown

MAX_STOP_STRINGS = 4
MAX_STOP_TOKEN_IDS = 1024

TokenIds = list[int]
Prompt = str | TokenIds


def parse_prompts(value: Any) -> list[Prompt]:
    """The four forms of `prompt`: a string, strings, token ids, lists of token ids. None is an empty string."""
    match value:
        case None:
            return [""]
        case str():
            return [value]
        case []:
            raise InvalidRequest("prompt must not be an empty list", "prompt")
        case [str(), *_]:
            if all(isinstance(item, str) for item in value):
                return list(value)
        case [list(), *_]:
            return [_parse_token_ids(item, f"prompt[{number}]") for number, item in enumerate(value)]
        case [*_]:
            return [_parse_token_ids(value, "prompt")]
    raise InvalidRequest(
        "prompt must be a string, a list of strings, a list of token ids or a list of lists of token ids",
        "prompt",
        "invalid_type",
    )


def parse_stop(value: Any) -> tuple[str, ...]:
    """`stop`: null, a string, or up to 4 strings, none of them empty."""
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if isinstance(strings, list) and len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop holds {len(strings)} strings; at most {MAX_STOP_STRINGS} are accepted", "stop")
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise InvalidRequest("stop must be a string or a list of strings", "stop", "invalid_type")
    if "" in strings:
        raise InvalidRequest("stop must not hold an empty string", "stop")
    return tuple(strings)


def parse_logit_bias(value: Any) -> dict[int, float]:
    """`logit_bias`: token ids, as JSON's string keys, to biases in [-100, 100]."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("logit_bias must be an object of token ids to numbers", "logit_bias", "invalid_type")
    biases = {_parse_bias_key(key): _parse_bias(key, bias) for key, bias in value.items()}
    if len(biases) < len(value):
        raise InvalidRequest("logit_bias gives a token id twice", "logit_bias", "duplicate_parameter")
    return biases


def parse_stop_token_ids(value: Any) -> tuple[int, ...]:
    """`stop_token_ids`: null or a list of token ids."""
    if isinstance(value, list) and len(value) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(f"stop_token_ids holds more than {MAX_STOP_TOKEN_IDS} token ids", "stop_token_ids")
    return () if value is None else tuple(_parse_token_ids(value, "stop_token_ids", may_be_empty=True))


def parse_token_ids_field(value: Any) -> TokenIds:
    """`tokens`: a list of token ids, which may be empty."""
    return _parse_token_ids(value, "tokens", may_be_empty=True)


def _parse_token_ids(value: Any, path: str, may_be_empty: bool = False) -> TokenIds:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise InvalidRequest(f"{path} must be a list of token ids (integers)", path, "invalid_type")
    if not value and not may_be_empty:
        raise InvalidRequest(f"{path} must hold at least one token id", path)
    return value


def _parse_bias_key(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 16):
        raise InvalidRequest(f"logit_bias: {shown(key)!r} is not a token id", "logit_bias")
    return int(key)


def _parse_bias(key: str, bias: Any) -> float:
    if type(bias) not in (int, float):
        raise InvalidRequest(f"logit_bias[{key}] must be a number", "logit_bias", "invalid_type")
    if not -100 <= bias <= 100:
        raise InvalidRequest(f"logit_bias[{key}] must be between -100 and 100", "logit_bias")
    return float(bias)
