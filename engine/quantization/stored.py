"""What a quantized checkpoint says of itself in config.json's quantization_config. Importable without torch.

Formats and their sources:
  gptq                AutoGPTQ and GPTQModel: bits, group_size (-1: none), checkpoint_format gptq or gptq_v2
  awq                 AutoAWQ: bits, group_size, version gemm
  compressed-tensors  format pack-quantized, int-quantized, naive-quantized or float-quantized, and config_groups
  fp8                 Hugging Face's fine-grained FP8 and vLLM's: weight_block_size where scales are of blocks
                      (none: 128 by 128)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

StoredFormat = Literal["gptq", "awq", "packed", "int8", "fp8"]
"""How a weight's fields are laid out; `engine/quantization/formats.py` reads each."""

FIELDS: Mapping[StoredFormat, tuple[str, ...]] = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "packed": ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    "int8": ("weight", "weight_scale", "weight_zero_point"),
    "fp8": ("weight", "weight_scale", "weight_scale_inv", "input_scale", "output_scale"),
}
"""The tensors of one weight, by what follows the layer's name; the first is always there."""

_COMPRESSED: Mapping[str, StoredFormat] = {
    "pack-quantized": "packed",
    "int-quantized": "int8",
    "naive-quantized": "int8",
    "float-quantized": "fp8",
}

_FP8_BLOCK = (128, 128)


class UnreadableQuantization(ValueError):
    """A quantized checkpoint that cannot be read; the message says which property it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuantization:
    """How the quantized weights of a checkpoint are stored. `bits` is 4 or 8.

    `zero_shift` is what is added to a stored zero point: GPTQ's first format stores one less. `is_dynamic` asks for
    inputs rounded to eight bits; `keeps_inputs` says that they should be rounded as nothing here does, and are not.
    `block` is of how many output features and inputs a scale is where scales are of blocks, the last one partial.
    """

    method: str
    format: StoredFormat
    bits: int
    zero_shift: int = 0
    is_dynamic: bool = False
    keeps_inputs: bool = False
    block: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Such as gptq-w4 or compressed-tensors-w8a8."""
        return f"{self.method}-w{self.bits}{'a8' if self.is_dynamic else ''}"


def parse_quantization(config: Mapping[str, Any]) -> StoredQuantization:
    """A checkpoint's quantization_config. Raises UnreadableQuantization."""
    method = config.get("quant_method")
    match method:
        case "gptq":
            form = config.get("checkpoint_format", "gptq")
            _check(form in ("gptq", "gptq_v2"), f"gptq as {form!r}; known are gptq and gptq_v2")
            return StoredQuantization(
                method="gptq", format="gptq", bits=_bits(config, 4, 8), zero_shift=1 if form == "gptq" else 0
            )
        case "awq":
            version = str(config.get("version", "gemm")).lower()
            _check(version == "gemm", f"awq as {version!r}; known is gemm")
            return StoredQuantization(method="awq", format="awq", bits=_bits(config, 4))
        case "compressed-tensors":
            return _parse_compressed(config)
        case "fp8":
            block = _block(config.get("weight_block_size", _FP8_BLOCK))
            return StoredQuantization(method="fp8", format="fp8", bits=8, block=block)
    raise UnreadableQuantization(f"{method}; known are gptq, awq, compressed-tensors and fp8")


def _parse_compressed(config: Mapping[str, Any]) -> StoredQuantization:
    """All groups of a config must agree: they say to which layers they apply, the layers' tensors say the rest."""
    parsed = {_parse_group(config, group) for group in _values(config.get("config_groups"))}
    _check(len(parsed) == 1, f"compressed-tensors with {len(parsed)} kinds of weights; one is known how to read")
    return parsed.pop()


def _parse_group(config: Mapping[str, Any], group: Mapping[str, Any]) -> StoredQuantization:
    stored = group.get("format") or config.get("format")
    form = _COMPRESSED.get(str(stored))
    if form is None:
        raise UnreadableQuantization(f"compressed-tensors as {stored}; known are {', '.join(_COMPRESSED)}")
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    bits = _bits({"bits": weights.get("num_bits")}, *((4, 8) if form == "packed" else (8,)))
    is_float = weights.get("type") == "float"
    _check(
        form == "packed" or is_float == (form == "fp8"), f"compressed-tensors as {stored} of {weights.get('type')}"
    )
    _check(not (form == "packed" and is_float), "compressed-tensors as pack-quantized of floats")
    if form == "int8" and inputs:
        _check(inputs.get("num_bits") == 8, f"activations of {inputs.get('num_bits')} bits")
        _check(bool(inputs.get("dynamic")), "activations whose scales are fixed beforehand")
    is_dynamic = form == "int8" and bool(inputs) and (inputs or {}).get("symmetric", True) is True
    return StoredQuantization(
        method="compressed-tensors",
        format=form,
        bits=bits,
        is_dynamic=is_dynamic,
        keeps_inputs=form != "fp8" and bool(inputs) and not is_dynamic,
        block=_block(weights.get("block_structure")) if weights.get("strategy") == "block" else None,
    )


def _values(groups: object) -> list[Mapping[str, Any]]:
    values = list(groups.values()) if isinstance(groups, Mapping) else []
    _check(bool(values) and all(isinstance(value, Mapping) for value in values), "config_groups that are no groups")
    return values


def _block(size: object) -> tuple[int, int] | None:
    """From a pair, or as "128x128"; None where there is none."""
    if size is None:
        return None
    sides = size.split("x") if isinstance(size, str) else size
    try:
        rows, columns = map(int, sides)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        rows = columns = 0
    _check(rows > 0 and columns > 0, f"blocks of {size!r}; known is a pair of whole numbers")
    return rows, columns


def _bits(config: Mapping[str, Any], *known: int) -> int:
    bits = config.get("bits")
    _check(bits in known, f"{bits} bits; known are {' and '.join(map(str, known))}")
    assert isinstance(bits, int)
    return bits


def _check(holds: bool, refused: str) -> None:
    if not holds:
        raise UnreadableQuantization(refused)
