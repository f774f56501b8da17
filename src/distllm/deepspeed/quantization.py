"""Reads what users say of quantization: our own dict, or DeepSpeed's `quant`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from distllm.deepspeed.refusal import InvalidOption, near_matches
from distllm.engine.quantization.config import GROUP_SIZES, QuantizationConfig, QuantizationError

_FIELD = "quantization_config"
_NAMES = {4: "int4", 8: "int8"}
_REMEDIES = {
    "activation": "give quantization_config={'bits': 8, 'dynamic_activations': True}",
    "qkv": "all linear layers are quantized, or none",
}
"""Entries of DeepSpeed's `quant` beside its weights, and what goes in place of what they say."""

_KNOWN = tuple(field.name for field in fields(QuantizationConfig))


def read_quantization(use: bool | None, given: object, name: str = _FIELD) -> QuantizationConfig | None:
    """`given` says how to quantize, `use` whether; None of one leaves it to the other. Bits are 8 unless it says.

    `name` is under which it was given. Raises InvalidOption.
    """
    if use is False and given is not None:
        raise InvalidOption("use_quantization", f"is False, and {name} says how to quantize: leave one of them out")
    if not use and given is None:
        return None
    options = {} if given is None else _entries(name, given)
    for option in options:
        if option not in _KNOWN:
            raise InvalidOption(name, f"has no {option!r}; {near_matches(str(option), _KNOWN)}")
    bits = options.pop("bits", 8)
    if type(bits) is not int or bits not in _NAMES:
        raise InvalidOption(name, f"has bits {bits!r}; choose 8 or 4")
    group_size = options.get("group_size")
    if group_size is not None and (type(group_size) is not int or group_size not in GROUP_SIZES):
        raise InvalidOption(name, f"has group_size {group_size!r}; choose {', '.join(map(str, GROUP_SIZES))}")
    for switch, value in options.items():
        if switch != "group_size" and not isinstance(value, bool):
            raise InvalidOption(name, f"has {switch} {value!r}; choose True or False")
    try:
        return QuantizationConfig.named(_NAMES[bits], **options)
    except QuantizationError as error:
        raise InvalidOption(name, f"cannot be: {error}") from None


def read_deepspeed_quant(quant: object) -> tuple[bool, dict[str, Any] | None]:
    """Whether DeepSpeed's `quant` switches quantization on, and what it says then as a quantization_config.

    Only its weights' number of bits and symmetry have a counterpart: DeepSpeed counts groups, we their size.
    Raises InvalidOption.
    """
    entries = _entries("quant", quant)
    weight = _entries("quant.weight", entries.pop("weight", {}))
    is_on = [_pop_switch("quant", entries), _pop_switch("quant.weight", weight)] == [True, True]
    for name, remedy in _REMEDIES.items():
        said = _entries(f"quant.{name}", entries.pop(name, None) or {})
        if said and _pop_switch(f"quant.{name}", said) is not (
            name == "qkv"
        ):  # rounded inputs, or some layers only
            raise InvalidOption(f"quant.{name}", f"is refused: {remedy}")
    bits, kind = weight.pop("num_bits", 8), weight.pop("q_type", "symmetric")
    if (groups := weight.pop("q_groups", 1)) != 1:
        raise InvalidOption(
            "quant", f"has q_groups {groups}; give quantization_config={{'group_size': 128}} instead"
        )
    unknown = [*entries, *(f"weight.{name}" for name, said in weight.items() if said != {})]
    if unknown:
        raise InvalidOption("quant", f"has {unknown[0]}, which means nothing here; leave it out")
    is_symmetric = getattr(kind, "value", kind) == "symmetric"
    return is_on, {"bits": bits, "symmetric": is_symmetric} if is_on else None


def _entries(name: str, given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InvalidOption(name, f"must be a dict, not {given!r}")
    return dict(given)


def _pop_switch(name: str, entries: dict[str, Any]) -> bool:
    """Whether `enabled` is true, as DeepSpeed takes it to be where it is not said."""
    is_on = entries.pop("enabled", True)
    if not isinstance(is_on, bool):
        raise InvalidOption(f"{name}.enabled", f"must be True or False, not {is_on!r}")
    return is_on
