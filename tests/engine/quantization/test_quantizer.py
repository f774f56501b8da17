"""Rounding to codes and back: how far a weight may move, and what is stored."""

import pytest
import torch
from torch import Tensor

from distllm.engine.quantization.config import QuantizationError, WeightScheme
from distllm.engine.quantization.quantizer import quantize
from distllm.engine.quantization.tensor import concatenate, pack_halves, unpack_halves

SCHEMES = [
    WeightScheme(bits=bits, group_size=group_size, symmetric=symmetric)
    for bits in (8, 4)
    for group_size in (None, 32, 128)
    for symmetric in (True, False)
]


def random_weight(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_no_weight_moves_further_than_half_a_step(scheme: WeightScheme, dtype: torch.dtype) -> None:
    weight = random_weight(20, 256, dtype)
    tensor = quantize(weight, scheme)
    step = tensor.scales.float().repeat_interleave(256 // tensor.num_groups, dim=1)
    moved = (tensor.dequantize(torch.float32) - weight.float()).abs()
    rounding = 0.502 if scheme.symmetric else 1.01  # a zero point is rounded too; stored scales are rounded
    clipped = 2**-8 * weight.float().abs()  # by a scale that was rounded down
    assert bool((moved <= rounding * step + clipped).all())
    assert (tensor.out_features, tensor.in_features) == (20, 256)
    assert tensor.dequantize().dtype == dtype


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_a_gpu_chooses_the_same_codes_and_scales(scheme: WeightScheme) -> None:
    weight = random_weight(512, 256)
    here, there = quantize(weight, scheme), quantize(weight.cuda(), scheme)
    assert torch.equal(here.codes, there.codes.cpu())
    assert torch.equal(here.scales, there.scales.cpu())


def test_four_bits_take_half_a_byte_and_scales_of_bf16() -> None:
    tensor = quantize(random_weight(64, 1024, torch.bfloat16), WeightScheme(bits=4, group_size=32))
    assert tensor.num_bytes == 64 * 1024 // 2 + 64 * 32 * 2


def test_zero_stays_zero_and_a_group_of_zeros_too() -> None:
    weight = random_weight(4, 64).abs() + 1
    weight[:, 3] = 0
    weight[0] = 0
    for scheme in (WeightScheme(bits=4, group_size=32), WeightScheme(bits=4, group_size=32, symmetric=False)):
        restored = quantize(weight, scheme).dequantize()
        assert not bool(restored[:, 3].any())
        assert not bool(restored[0].any())


def test_a_large_weight_is_quantized_like_its_rows() -> None:
    weight = random_weight(300, 1 << 15, torch.bfloat16)
    tensor, scheme = quantize(weight, WeightScheme(bits=8)), WeightScheme(bits=8)
    assert torch.equal(tensor.rows(290, 300).codes, quantize(weight[290:], scheme).codes)


def test_a_transposed_weight_is_quantized_like_its_copy() -> None:
    stored, scheme = random_weight(64, 20), WeightScheme(bits=4, group_size=32)
    assert torch.equal(quantize(stored.T, scheme).codes, quantize(stored.T.contiguous(), scheme).codes)


def test_the_dense_weight_is_left_as_it_was() -> None:
    weight = random_weight(8, 64)
    quantize(weight, WeightScheme(bits=4, group_size=32))
    assert torch.equal(weight, random_weight(8, 64))


def test_parts_go_together_only_where_they_are_stored_alike() -> None:
    first, second = (quantize(random_weight(rows, 64), WeightScheme(bits=8)) for rows in (3, 5))
    together = concatenate([first, second])
    assert torch.equal(together.dequantize(), torch.cat([first.dequantize(), second.dequantize()]))
    assert not first.goes_with(quantize(random_weight(3, 64), WeightScheme(bits=8, group_size=32)))
    assert not first.goes_with(quantize(random_weight(3, 64), WeightScheme(bits=8, symmetric=False)))


def test_halves_come_back_in_order() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(3, 2)
    assert torch.equal(unpack_halves(pack_halves(codes)), codes)


def test_groups_that_do_not_divide_are_refused_with_those_that_do() -> None:
    with pytest.raises(QuantizationError, match="64 does not divide the 96 inputs of a weight; choose 32"):
        quantize(random_weight(4, 96), WeightScheme(bits=4, group_size=64))
    with pytest.raises(QuantizationError, match="use int8 without groups"):
        quantize(random_weight(4, 77), WeightScheme(bits=4, group_size=32))
