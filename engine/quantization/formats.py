"""Reads one weight as other projects store it into a QuantizedTensor: the same codes, scales and zero points.

`fields` hold the layer's tensors by the names that stored.py lists; N are output features, K inputs, G groups.

  gptq    qweight int32 [K / c, N], c codes a word, the first k lowest; qzeros int32 [G, N / c]; scales [G, N];
          g_idx int32 [K], the group of each input.                           (AutoGPTQ, nn_modules/qlinear)
  awq     qweight int32 [K, N / 8]; qzeros int32 [G, N / 8]; scales [G, N]; the nibbles of a word, lowest first, are
          those of features 0, 2, 4, 6, 1, 3, 5, 7.                           (AutoAWQ, awq/utils/packing_utils.py)
  packed  weight_packed int32 [N, K / c], codes shifted to be unsigned; weight_scale [N, G]; weight_zero_point int32
          [N / c, G] or int8 [N, G]; weight_g_idx [K].                        (compressed-tensors, pack_quantized)
  int8    weight int8 [N, K]; weight_scale as of fp8; weight_zero_point int8. (compressed-tensors, naive_quantized)
  fp8     weight e4m3 [N, K]; weight_scale or weight_scale_inv one, [N], [N, G], or of blocks, the last partial.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from distllm.engine.quantization.stored import StoredQuantization
from distllm.engine.quantization.tensor import (
    GROUP_MULTIPLE,
    MIDDLE,
    CodeFormat,
    QuantizedTensor,
    pack_halves,
    unpack_halves,
)

Fields = Mapping[str, Tensor]

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word, lowest first, holds each of eight output features."""


def read_weight(stored: StoredQuantization, fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
    """The weight that `fields` hold, standing for one of `dtype`. Raises ValueError where they disagree.

    Fields on the meta device give a weight there: what shapes alone can tell, no order of inputs.
    """
    try:
        tensor = _read(stored, fields, dtype)
    except KeyError as error:
        raise ValueError(f"there is no {error.args[0]} among its tensors") from None
    except RuntimeError as error:
        raise ValueError(f"its quantized tensors do not fit together: {error}") from None
    _check_groups(tensor)
    return tensor


def _read(stored: StoredQuantization, fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
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


def _check_groups(tensor: QuantizedTensor) -> None:
    group_size, rest = divmod(tensor.in_features, tensor.num_groups)
    if rest or (tensor.num_groups > 1 and group_size % GROUP_MULTIPLE):
        raise ValueError(
            f"its {tensor.num_groups} groups do not divide its {tensor.in_features} inputs into multiples of "
            f"{GROUP_MULTIPLE}"
        )


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
    words, shape = fields["weight_packed"], fields["weight_shape"]
    num_rows, width = len(words), words.shape[1] * 32 // stored.bits
    in_features = (
        width if shape.is_meta else min(width, int(shape[1]))
    )  # of the whole weight, which a part is less than
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
    scales = _spread(_scales(fields["weight_scale"]), codes.shape, stored.block)
    if zeros is not None:
        zeros = _spread((zeros.to(torch.int16) + MIDDLE["int8"]).to(torch.uint8), codes.shape, stored.block)
    return QuantizedTensor(codes, scales, _unless_middle(zeros, 8), "int8", dtype, is_dynamic=stored.is_dynamic)


def _read_fp8(stored: StoredQuantization, fields: Fields, dtype: torch.dtype) -> QuantizedTensor:
    weight = fields["weight"]
    scales = fields["weight_scale_inv"] if "weight_scale_inv" in fields else fields["weight_scale"]
    spread = _spread(_scales(scales), weight.shape, stored.block)
    return QuantizedTensor(weight.view(torch.uint8), spread, None, "fp8", dtype)


def _spread(values: Tensor, shape: torch.Size, block: tuple[int, int] | None) -> Tensor:
    """One value, one a row, or one a block, as [N, G] of equal groups of inputs: the largest that fit all blocks.

    blocks of 128 x 128 over [576, 160]:  values [5, 2] -> [576, 5], rows 128 128 128 128 64, inputs 4 x 32 and 32
    """
    num_rows, in_features = shape
    if values.numel() == 1:
        return values.reshape(1, 1).repeat(num_rows, 1)
    if tuple(values.shape) in ((num_rows,), (num_rows, 1)):
        return values.reshape(num_rows, 1)
    if block is None and len(values) == num_rows and in_features % values.shape[1] == 0:
        return values
    if block is None or tuple(values.shape) != (-(-num_rows // block[0]), -(-in_features // block[1])):
        raise ValueError(
            f"scales {list(values.shape)} do not fit a weight {list(shape)}"
            + ("" if block is None else f" in blocks of {block[0]} x {block[1]}")
        )
    group_size = in_features if values.shape[1] == 1 else math.gcd(in_features, block[1])
    of_rows = values.repeat_interleave(block[0], dim=0)[:num_rows]
    return of_rows.repeat_interleave(-(-block[1] // group_size), dim=1)[:, : in_features // group_size].contiguous()


def _grouped(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    dtype: torch.dtype,
    group_of_input: Tensor | None = None,
) -> QuantizedTensor:
    """Codes uint8 [N, bytes], scales and zeros [N, G], with inputs sorted by group where they are not."""
    if len(scales) != len(codes) or (zeros is not None and zeros.shape != scales.shape):
        found = "" if zeros is None else f" and zero points {list(zeros.shape)}"
        raise ValueError(f"scales {list(scales.shape)}{found} do not fit {len(codes)} features [features, groups]")
    order = None if group_of_input is None else _input_order(group_of_input, scales.shape[1])
    if order is not None:
        codes = _packed(_unpacked(codes, bits)[:, order], bits)
    return QuantizedTensor(
        codes.contiguous(), scales, _unless_middle(zeros, bits), _code_format(bits), dtype, input_order=order
    )


def _input_order(group_of_input: Tensor, num_groups: int) -> Tensor | None:
    """Inputs by their groups, None where they lie so already."""
    if group_of_input.is_meta:
        return None
    groups = group_of_input.long()
    counts = (groups - groups.min()).bincount()  # the numbers of a rank's part need not begin at 0
    if len(counts) != num_groups or bool((counts != len(groups) // num_groups).any()):
        raise ValueError(f"its inputs do not make {num_groups} groups of one size")
    return groups.argsort(stable=True) if has_sorted_inputs(group_of_input) else None


def _unless_middle(zeros: Tensor | None, bits: int) -> Tensor | None:
    """None where all zero points are the middle: such a weight is symmetric."""
    if zeros is None or zeros.is_meta or bool((zeros == MIDDLE[_code_format(bits)]).all()):
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
    if not scales.is_floating_point():
        raise ValueError(f"scales of {str(scales.dtype).removeprefix('torch.')} are not known how to read")
    return (scales if scales.dtype == torch.bfloat16 else scales.float()).contiguous()


def _code_format(bits: int) -> CodeFormat:
    return "int4" if bits == 4 else "int8"
