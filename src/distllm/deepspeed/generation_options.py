"""How text is generated, under the names of transformers' generate."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, cast

from distllm.clients.options import CompletionOptions
from distllm.deepspeed.refusal import InvalidOption, near_matches
from distllm.engine.sampling_params import InvalidParameter, SamplingParams
from distllm.server.protocol.fields import MAX_STOP_STRINGS

DEFAULT_MAX_NEW_TOKENS = 20
"""As transformers', where neither the call nor the model says."""

_SAMPLED = ("temperature", "top_p", "top_k", "min_p")
_WHOLE = ("max_new_tokens", "min_new_tokens", "top_k", "seed")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_SWITCHES = ("do_sample", "return_full_text")
_LEAST_INT, _MOST_INT = -(2**63), 2**64 - 1
"""What a message to the engine can hold."""

_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
_OURS = {**{theirs: ours for ours, theirs in _NAMES.items()}, "null": "None"}
_THEIR_NAMES = re.compile(rf"\b({'|'.join(_OURS)})\b")


class GenerationOptions(TypedDict, total=False):
    """Options of `generate` and `stream`; what is left out is the model's own recommendation.

    `max_new_tokens` and `min_new_tokens` count tokens of the answer. `do_sample` False is greedy, and so is leaving
    it out unless temperature, top_p, top_k or min_p are given. `seed` makes sampling repeatable. The text ends
    before any of up to 4 `stop` strings (`stop_strings` is the same). With `return_full_text` it begins with the
    prompt.
    """

    max_new_tokens: int | None
    min_new_tokens: int
    do_sample: bool | None
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    stop_strings: str | Sequence[str]
    return_full_text: bool


_KNOWN = tuple(GenerationOptions.__annotations__)


def sampling_params(options: Mapping[str, Any], recommended: SamplingParams) -> SamplingParams:
    """What `options` ask of the engine, over what the model recommends. Raises InvalidOption, naming the option."""
    for name in options:
        if name not in _KNOWN:
            raise InvalidOption(name, f"is no option of generate; {near_matches(name, _KNOWN)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        _check_type(name, value)
    samples = given.pop("do_sample", any(name in given for name in _SAMPLED))
    if not samples:
        given = {name: value for name, value in given.items() if name not in _SAMPLED} | {"temperature": 0.0}
    if given.get("top_k") == 0:  # transformers' way to keep every token
        given["top_k"] = None
    changes = {name: given[name] for name in (*_SAMPLED, "repetition_penalty", "seed") if name in given}
    changes |= {ours: given[theirs] for theirs, ours in _NAMES.items() if theirs in given}
    changes.setdefault("max_tokens", recommended.max_tokens or DEFAULT_MAX_NEW_TOKENS)
    try:
        return replace(recommended, **changes)
    except InvalidParameter as error:
        raise InvalidOption(in_our_names(error.field), in_our_names(error.remedy)) from None


def completion_options(options: Mapping[str, Any]) -> CompletionOptions:
    """The same as fields of a completion; what is left out is left to the server. Raises InvalidOption."""
    params = sampling_params(options, SamplingParams(max_tokens=None))
    given = [name for name in (*_SAMPLED, "repetition_penalty", "seed") if options.get(name) is not None]
    if params.is_greedy:
        given = ["temperature", *(name for name in given if name not in _SAMPLED)]
    fields: dict[str, Any] = {name: getattr(params, name) for name in ("max_tokens", *given)}
    fields |= {"min_tokens": params.min_tokens or None, "stop": list(stop_strings(options)) or None}
    return cast(CompletionOptions, {name: value for name, value in fields.items() if value is not None})


def stop_strings(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of both names. Raises InvalidOption."""
    found: list[str] = []
    for name in ("stop", "stop_strings"):
        given = options.get(name)
        texts = [] if given is None or given == "" else [given] if isinstance(given, str) else given
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise InvalidOption(name, f"must be a text or a list of texts, not {given!r}")
        if "" in texts:
            raise InvalidOption(name, "must not hold an empty text")
        found += texts
    if len(found) > MAX_STOP_STRINGS:
        raise InvalidOption(
            "stop", f"holds {len(found)} texts, stop_strings included; at most {MAX_STOP_STRINGS} go"
        )
    return tuple(found)


def in_our_names(text: str) -> str:
    """What the engine says, with the names of the options here."""
    return _THEIR_NAMES.sub(lambda found: _OURS[found[0]], text)


def _check_type(name: str, value: object) -> None:
    if name in _WHOLE and type(value) is not int:
        raise InvalidOption(name, f"must be a whole number, not {value!r}")
    if isinstance(value, int) and not _LEAST_INT <= value <= _MOST_INT:
        raise InvalidOption(name, "must be of at most 64 bits")
    if name in _NUMBERS and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise InvalidOption(name, f"must be a number, not {value!r}")
    if name in _SWITCHES and not isinstance(value, bool):
        raise InvalidOption(name, f"must be True or False, not {value!r}")
