"""How text is generated, under the names of transformers' generate."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from distllm.deepspeed.refusal import InvalidOption, near_matches
from distllm.engine.sampling_params import InvalidParameter, SamplingParams

DEFAULT_MAX_NEW_TOKENS = 20
"""As transformers', where neither the call nor the model says."""

_SAMPLED = ("temperature", "top_p", "top_k", "min_p")
_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


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


def sampling_params(options: Mapping[str, Any], recommended: SamplingParams) -> SamplingParams:
    """What `options` ask of the engine, over what the model recommends. Raises InvalidOption, naming the option."""
    known = GenerationOptions.__annotations__
    for name in options:
        if name not in known:
            raise InvalidOption(name, f"is no option of generate; {near_matches(name, known)}")
    given = {name: value for name, value in options.items() if value is not None}
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
        option = next((theirs for theirs, ours in _NAMES.items() if ours == error.field), error.field)
        raise InvalidOption(option, error.remedy) from None
    except TypeError:
        raise InvalidOption(", ".join(changes), "must be numbers") from None


def stop_strings(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of both names. What is no text is refused where they are used."""
    both = [options.get(name) or () for name in ("stop", "stop_strings")]
    return tuple(text for given in both for text in ([given] if isinstance(given, str) else given))
