"""Reads what users give under DeepSpeed's names as parameters of DeepSpeedConfig, and keeps the names they used."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distllm.deepspeed.deepspeed_fields import NESTED, RENAMED, UNUSED, Harmless
from distllm.deepspeed.quantization import read_deepspeed_quant
from distllm.deepspeed.refusal import InvalidOption, near_matches

logger = logging.getLogger("distllm.deepspeed")


@dataclass(frozen=True, slots=True)
class Given:
    """A parameter's value, and the name under which it was given, such as tensor_parallel.tp_size."""

    name: str
    value: Any


def read_given(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Given]:
    """What `fields` say of each parameter of `defaults`; None says nothing of what has no value by default.

    Raises InvalidOption for a field that is unknown or refused, and for two that contradict each other.
    """
    found: dict[str, Given] = {}
    for name, value in fields.items():
        for parameter, given in _expand(name, value, defaults):
            if given.value is None and defaults[parameter] in (None, ""):
                continue
            other = found.setdefault(parameter, given)
            if other.value != given.value:
                both = f"is {given.value!r}, and {other.name} is {other.value!r}"
                raise InvalidOption(given.name, f"{both}: they are one option, give one of them")
    return found


def _expand(name: str, value: object, known: Mapping[str, Any]) -> Iterator[tuple[str, Given]]:
    """The parameters of which one field speaks."""
    if name in known:
        yield name, Given(name, value)
    elif name in RENAMED:
        yield RENAMED[name], Given(name, value)
    elif name in NESTED:
        yield from _unnest(name, value)
    elif name == "quant" and value is None:
        return
    elif name == "quant":
        is_on, config = read_deepspeed_quant(value)
        yield "use_quantization", Given("quant.enabled", is_on)
        yield "quantization_config", Given("quant", config)
    else:
        _check_unused(name, value, known)


def _unnest(name: str, value: object) -> Iterator[tuple[str, Given]]:
    if not isinstance(value, Mapping):
        raise InvalidOption(name, f"must be a dict, not {value!r}")
    for entry, content in value.items():
        if entry in NESTED[name]:
            yield NESTED[name][entry], Given(f"{name}.{entry}", content)
        else:
            _check_unused(entry, content, NESTED[name])


def _check_unused(name: str, value: object, known: Mapping[str, object]) -> None:
    field = UNUSED.get(name)
    if field is None:
        everything = {*known, *RENAMED, *NESTED, *UNUSED, "quant"}
        raise InvalidOption(name, f"is no field of DeepSpeed's inference config; {near_matches(name, everything)}")
    if isinstance(field, Harmless):
        logger.debug("%s=%r changes nothing: %s", name, value, field.reason)
    elif not field.accepts(value):
        raise InvalidOption(name, f"is refused: {field.reason}")
