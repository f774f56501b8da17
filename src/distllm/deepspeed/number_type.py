"""The number types that users name, and what this machine computes in their stead. Never imports torch itself."""

import logging
from collections.abc import Mapping
from functools import cache

from distllm.deepspeed.refusal import InvalidOption, near_matches
from distllm.engine.config import DtypeName
from distllm.engine.dtypes import cpu_level, float16_stand_in

logger = logging.getLogger("distllm.deepspeed")

_NAMES: Mapping[str, DtypeName] = {
    "auto": "auto",
    "float32": "float32",
    "float": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bfloat": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "fp16": "float16",
}


def dtype_name(dtype: object) -> DtypeName:
    """Of a torch.dtype, or of one of the names that DeepSpeed knows. Raises InvalidOption."""
    text = str(dtype).removeprefix("torch.")
    if text == "int8":
        raise InvalidOption("dtype", "int8 is a way to store weights: give use_quantization=True instead")
    if text not in _NAMES:
        raise InvalidOption("dtype", f"{text} is unknown; {near_matches(text, _NAMES)}")
    return _NAMES[text]


def computed_dtype(name: DtypeName, device_type: str) -> DtypeName:
    """What is computed in. No CPU kernel is fast in float16: another type stands in, and the log says so once."""
    if name == "float16" and device_type == "cpu":
        stand_in = float16_stand_in(cpu_level())
        _say_once(f"this CPU computes in {stand_in} instead of float16, for which it has no fast instructions")
        return stand_in
    return name


@cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)
