"""Reads one weight as other projects store it into a QuantizedTensor: the same codes, scales and zero points.

`fields` hold the layer's tensors by the names that stored.py lists; N are output features, K inputs, G groups.

  gptq    qweight int32 [K / c, N], c codes a word, the first k lowest; qzeros int32 [G, N / c]; scales [G, N];
          g_idx int32 [K], the group of each input.                           (AutoGPTQ, nn_modules/qlinear)
  awq     qweight int32 [K, N / 8]; qzeros int32 [G, N / 8]; scales [G, N]; the nibbles of a word, lowest first, are
          those of features 0, 2, 4, 6, 1, 3, 5, 7.                           (AutoAWQ, awq/utils/packing_utils.py)
  packed  weight_packed int32 [N, K / c], codes shifted to be unsigned; weight_scale [N, G]; weight_zero_point int32
          [N / c, G] or int8 [N, G]; weight_g_idx [K].                        (compressed-tensors, pack_quantized)
  int8    weight int8 [N, K]; weight_scale [N, G]; weight_zero_point int8.    (compressed-tensors, naive_quantized)
  fp8     weight e4m3 [N, K]; weight_scale one, [N] or [N, 1], or weight_scale_inv [N / b, K / b] of b x b blocks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from distllm.engine.quantization.stored import StoredQuantization
from distllm.engine.quantization.tensor import MIDDLE, CodeFormat, QuantizedTensor, pack_halves, unpack_halves

Fields = Mapping[str, Tensor]

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word, lowest first, holds each of eight output features."""


def read_weight(stored: StoredQuantization, fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
    """The weight that `fields` hold, standing for one of `dtype`. Raises ValueError where they disagree."""
    try:
        match stored.format:
            case "gptq":
                return _read_gptq(stored, fields, dtype)
            case "awq":
                return _read_awq(fields, dtype)
            case "packed":
                return _read_packed(stored, fields, dtype)
            case "int8":
                return _read_int8(stored, fields, dtype)
            case "fp8":
                return _read_fp8(stored, fields, dtype)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"its quantized tensors do not fit together: {error}") from None


def has_sorted_inputs(group_of_input: Tensor) -> bool:
    """Whether inputs were sorted before they were grouped, so that those of a group do not lie side by side."""
    return bool((group_of_input.long().diff() < 0).any())


def _read_gptq(stored: StoredQuantization, fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
    codes = _bytes_of(fields["qweight"].T)
    zeros = _unpacked(_bytes_of(fields["qzeros"]), stored.bits).T + stored.zero_shift
    return _grouped(codes, _scales(fields["scales"].T), zeros, stored.bits, dtype, fields.get("g_idx"))


def _read_awq(fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
    codes = pack_halves(_awq_features(fields["qweight"]).T)
    return _grouped(codes, _scales(fields["scales"].T), _awq_features(fields["qzeros"]).T, 4, dtype)


def _read_packed(stored: StoredQuantization, fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
    words = fields["weight_packed"]
    num_rows = len(words)  # weight_shape is that of the whole weight, also where this is a rank's part of it
    in_features = min(int(fields["weight_shape"][1]), words.shape[1] * 32 // stored.bits)
    codes = _bytes_of(words)[:, : in_features * stored.bits // 8]
    zeros = fields.get("weight_zero_point")
    if zeros is not None and zeros.dtype == torch.int32:
        zeros = _unpacked(_bytes_of(zeros.T), stored.bits)[:, :num_rows].T
    elif zeros is not None:
        zeros = (zeros.to(torch.int16) + MIDDLE[_code_format(stored.bits)]).to(torch.uint8)
    scales = _scales(fields["weight_scale"])
    return _grouped(codes, scales, zeros, stored.bits, dtype, fields.get("weight_g_idx"))


def _read_int8(stored: StoredQuantization, fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
    codes = fields["weight"].view(torch.uint8) ^ 0x80
    zeros = fields.get("weight_zero_point")
    scales = _scales(fields["weight_scale"]).expand(len(codes), -1).contiguous()
    if zeros is not None:
        zeros = (zeros.to(torch.int16) + MIDDLE["int8"]).to(torch.uint8).view(-1, 1).expand(scales.shape)
    return QuantizedTensor(codes, scales, _unless_middle(zeros, 8), "int8", dtype, is_dynamic=stored.is_dynamic)


def _read_fp8(stored: StoredQuantization, fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
    weight = fields["weight"]
    num_rows, in_features = weight.shape
    scales = fields["weight_scale_inv"] if "weight_scale_inv" in fields else fields["weight_scale"]
    scales = _scales(scales.reshape(-1, 1) if scales.dim() < 2 else scales)
    is_of_blocks = stored.block_rows is not None and len(scales) > 1
    rows_each = stored.block_rows if stored.block_rows and is_of_blocks else -(-num_rows // len(scales))
    if -(-num_rows // rows_each) != len(scales):
        raise ValueError(f"it has {len(scales)} rows of scales for {num_rows} features in blocks of {rows_each}")
    scales = scales.repeat_interleave(rows_each, dim=0)[:num_rows].contiguous()
    if in_features % scales.shape[1]:
        raise ValueError(f"blocks of scales do not divide its {in_features} inputs")
    return QuantizedTensor(weight.view(torch.uint8), scales, None, "fp8", dtype)


def _grouped(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    dtype: torch.dtype,
    group_of_input: Tensor | None = None,
) -> QuantizedTensor:
    """Codes uint8 [N, bytes], scales and zeros [N, G], with inputs sorted by group where they are not."""
    order = None if group_of_input is None else _input_order(group_of_input)
    if order is not None:
        codes = _packed(_unpacked(codes, bits)[:, order], bits)
    return QuantizedTensor(
        codes.contiguous(), scales, _unless_middle(zeros, bits), _code_format(bits), dtype, input_order=order
    )


def _input_order(group_of_input: Tensor) -> Tensor | None:
    """Inputs by their groups, None where they lie so already."""
    return group_of_input.long().argsort(stable=True) if has_sorted_inputs(group_of_input) else None


def _unless_middle(zeros: Tensor | None, bits: int) -> Tensor | None:
    """None where all zero points are the middle: such a weight is symmetric."""
    if zeros is None or bool((zeros == MIDDLE[_code_format(bits)]).all()):
        return None
    return zeros.to(torch.uint8).contiguous()


def _awq_features(words: Tensor) -> Tensor:
    """int32 [rows, N / 8] -> codes uint8 [rows, N]."""
    nibbles = unpack_halves(_bytes_of(words)).view(len(words), -1, 8)
    return nibbles[:, :, list(_AWQ_PLACES)].flatten(1)


def _bytes_of(words: Tensor) -> Tensor:
    """int32 [rows, columns] -> uint8 [rows, 4 columns], the lowest byte of a word first."""
    return words.contiguous().view(torch.uint8)


def _unpacked(codes: Tensor, bits: int) -> Tensor:
    return unpack_halves(codes) if bits == 4 else codes


def _packed(codes: Tensor, bits: int) -> Tensor:
    return pack_halves(codes) if bits == 4 else codes


def _scales(scales: Tensor) -> Tensor:
    return (scales if scales.dtype == torch.bfloat16 else scales.float()).contiguous()


def _code_format(bits: int) -> CodeFormat:
    return "int4" if bits == 4 else "int8"
