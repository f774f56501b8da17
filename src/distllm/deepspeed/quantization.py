"""Reads what users say of quantization: our own dict, or DeepSpeed's `quant`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from distllm.deepspeed.refusal import InvalidOption, near_matches
from distllm.engine.quantization.config import QuantizationConfig, QuantizationError

_FIELD = "quantization_config"
_NAMES = {4: "int4", 8: "int8"}
_KNOWN = tuple(field.name for field in fields(QuantizationConfig))


def read_quantization(use: bool | None, given: Mapping[str, Any] | None) -> QuantizationConfig | None:
    """`given` says how to quantize, `use` whether; None of one leaves it to the other. Bits are 8 unless it says.

    Raises InvalidOption.
    """
    if use is False and given is not None:
        raise InvalidOption(
            "use_quantization", f"is False, and {_FIELD} says how to quantize: leave one of them out"
        )
    if not use and given is None:
        return None
    options = dict(given or {})
    for name in options:
        if name not in _KNOWN:
            raise InvalidOption(_FIELD, f"has no {name!r}; {near_matches(name, _KNOWN)}")
    bits = options.pop("bits", 8)
    if bits not in _NAMES:
        raise InvalidOption(_FIELD, f"has bits {bits!r}; choose 8 or 4")
    try:
        return QuantizationConfig.named(_NAMES[bits], **options)
    except (QuantizationError, TypeError) as error:
        raise InvalidOption(_FIELD, f"cannot be: {error}") from None


def read_deepspeed_quant(quant: Mapping[str, Any]) -> dict[str, Any] | None:
    """What DeepSpeed's `quant` says, as a quantization_config; None where it switches it off.

    Only its weights' number of bits and symmetry have a counterpart: DeepSpeed counts groups, we their size.
    Raises InvalidOption.
    """
    if not quant.get("enabled", True):
        return None
    weight = dict(quant.get("weight", {}))
    if not weight.pop("enabled", True):
        return None
    groups = weight.pop("q_groups", 1)
    if groups != 1:
        raise InvalidOption(
            "quant", f"has q_groups {groups}; give quantization_config={{'group_size': 128}} instead"
        )
    found = {"bits": weight.pop("num_bits", 8), "symmetric": str(weight.pop("q_type", "symmetric")) == "symmetric"}
    if weight:
        raise InvalidOption("quant", f"has weight.{min(weight)}, which means nothing here; leave it out")
    return found
