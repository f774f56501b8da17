"""One quantized weight as compressed-tensors stores it, and what config.json says of it.

Weight-only codes become pack-quantized, those with dynamic activations int-quantized; formats.py draws both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distllm.engine.quantization.config import QuantizationConfig, QuantizationError, WeightScheme
from distllm.engine.quantization.naming import MLP_PATTERN
from distllm.engine.quantization.safetensors_writer import PlannedTensor
from distllm.engine.quantization.tensor import QuantizedTensor, pack_halves


def check_exportable(config: QuantizationConfig) -> None:
    """Raises QuantizationError for what int-quantized cannot say."""
    if config.dynamic_activations and (config.group_size is not None or not config.symmetric):
        raise QuantizationError(
            "dynamic_activations is stored with a scale a row: leave group_size and symmetric out"
        )


def planned_fields(
    layer: str, shape: tuple[int, int], scheme: WeightScheme, scale_dtype: torch.dtype
) -> list[PlannedTensor]:
    """The tensors that `stored_fields` will give for a weight of `shape` [N, K], in the same order."""
    num_rows, in_features = shape
    num_groups = in_features // (scheme.group_size or in_features)
    scales = PlannedTensor.of(f"{layer}.weight_scale", scale_dtype, num_rows, num_groups)
    if scheme.dynamic_activations:
        return [PlannedTensor.of(f"{layer}.weight", torch.int8, num_rows, in_features), scales]
    per_word = 32 // scheme.bits
    words = PlannedTensor.of(f"{layer}.weight_packed", torch.int32, num_rows, -(-in_features // per_word))
    fields = [words, scales, PlannedTensor.of(f"{layer}.weight_shape", torch.int64, 2)]
    if not scheme.symmetric:
        shape_of_zeros = (-(-num_rows // per_word), num_groups)
        fields.append(PlannedTensor.of(f"{layer}.weight_zero_point", torch.int32, *shape_of_zeros))
    return fields


def stored_fields(tensor: QuantizedTensor) -> list[Tensor]:
    """The tensors of one weight."""
    if tensor.is_dynamic:
        return [(tensor.codes ^ 0x80).view(torch.int8), tensor.scales]
    shape = torch.tensor([tensor.out_features, tensor.in_features])
    fields = [_words(tensor.codes), tensor.scales, shape]
    if tensor.zeros is not None:
        fields.append(_zero_words(tensor.zeros, 4 if tensor.format == "int4" else 8))
    return fields


def quantization_config(config: QuantizationConfig, ignored: Sequence[str]) -> Mapping[str, Any]:
    """config.json's quantization_config; `ignored` names the linear layers that stay dense."""
    targets = {"group_0": (["Linear"], config.linear)}
    if config.mlp != config.linear:
        targets = {"group_0": ([f"re:{MLP_PATTERN}"], config.mlp), "group_1": (["Linear"], config.linear)}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "int-quantized" if config.dynamic_activations else "pack-quantized",
        "config_groups": {name: _group(names, scheme) for name, (names, scheme) in targets.items()},
        "ignore": list(ignored),
        "kv_cache_scheme": None,
    }


def _group(targets: list[str], scheme: WeightScheme) -> Mapping[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs if scheme.dynamic_activations else None,
        "output_activations": None,
    }


def _words(codes: Tensor) -> Tensor:
    """uint8 [rows, bytes] -> int32 [rows, words], filled up with zeros."""
    return functional.pad(codes, (0, -codes.shape[1] % 4)).contiguous().view(torch.int32)


def _zero_words(zeros: Tensor, bits: int) -> Tensor:
    """uint8 [N, G] -> int32 [N / c, G], words along N."""
    columns = functional.pad(zeros.T, (0, -zeros.shape[0] % (32 // bits)))
    if bits == 4:
        columns = pack_halves(columns)
    return columns.contiguous().view(torch.int32).T.contiguous()
