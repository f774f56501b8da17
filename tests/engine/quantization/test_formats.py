"""Scales of blocks, of which the last may be partial, against transformers' own reading of them."""

import pytest
import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from distllm.engine.quantization.formats import read_weight
from distllm.engine.quantization.stored import StoredQuantization, UnreadableQuantization, parse_quantization


def blocks(rows: int, columns: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns] and scales of its blocks, all different."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // size[0]), -(-columns // size[1]), generator=generator) + 0.5
    return weight, scales


@pytest.mark.parametrize("columns", [256, 160, 96, 64])
@pytest.mark.parametrize("rows", [576, 160, 128, 96])
@pytest.mark.parametrize("size", [(128, 128), (64, 64), (32, 64)])
def test_blocks_of_fp8_mean_what_transformers_reads(rows: int, columns: int, size: tuple[int, int]) -> None:
    stored = parse_quantization({"quant_method": "fp8", "weight_block_size": list(size)})
    weight, scales = blocks(rows, columns, size)
    tensor = read_weight(stored, {"weight": weight, "weight_scale_inv": scales}, torch.float32)
    assert torch.equal(tensor.dequantize(), _dequantize_fp8_weight(weight, scales, list(size), torch.float32))


def test_blocks_are_of_128_unless_the_config_says_otherwise() -> None:
    weight, scales = blocks(576, 256, (128, 128))
    tensor = read_weight(
        parse_quantization({"quant_method": "fp8"}), {"weight": weight, "weight_scale_inv": scales}, torch.float32
    )
    sizes = torch.tensor([128, 128, 128, 128, 64])
    assert torch.equal(tensor.scales, scales.repeat_interleave(sizes, dim=0))


@pytest.mark.parametrize(("form", "kind"), [("float-quantized", "float"), ("int-quantized", "int")])
def test_blocks_of_compressed_tensors_are_read_too(form: str, kind: str) -> None:
    scheme = {"num_bits": 8, "type": kind, "strategy": "block", "block_structure": [128, 64]}
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": scheme}},
    }
    weight, scales = blocks(160, 96, (128, 64))
    if kind == "int":
        weight = (weight.float() * 20).round().clamp(-128, 127).to(torch.int8)
    tensor = read_weight(parse_quantization(config), {"weight": weight, "weight_scale": scales}, torch.float32)
    spread = scales.repeat_interleave(128, 0)[:160].repeat_interleave(64, 1)[:, :96]
    assert torch.equal(tensor.dequantize(), weight.float() * spread)


@pytest.mark.parametrize("kept", [(4, 2), (5, 1), (6, 2)])
def test_scales_that_do_not_fit_the_blocks_are_refused(kept: tuple[int, int]) -> None:
    weight, _ = blocks(576, 256, (128, 128))
    stored = StoredQuantization(method="fp8", format="fp8", bits=8, block=(128, 128))
    with pytest.raises(
        ValueError, match=r"scales \[\d, \d\] do not fit a weight \[576, 256\] in blocks of 128 x 128"
    ):
        read_weight(stored, {"weight": weight, "weight_scale_inv": torch.ones(kept)}, torch.float32)


def test_scales_of_whole_numbers_are_refused() -> None:
    weight, _ = blocks(128, 128, (128, 128))
    fields = {"weight": weight, "weight_scale_inv": torch.ones(1, 1, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="scales of uint8"):
        read_weight(parse_quantization({"quant_method": "fp8"}), fields, torch.float32)


def test_a_block_size_of_something_else_is_refused() -> None:
    with pytest.raises(UnreadableQuantization, match="blocks of 128; known is a pair"):
        parse_quantization({"quant_method": "fp8", "weight_block_size": 128})


@pytest.mark.parametrize("spans", [[(0, 48)], [(48, 96), (112, 160)], [(0, 160)], [(8, 16)]])
def test_inputs_cut_inside_of_a_block_keep_their_scales(spans: list[tuple[int, int]]) -> None:
    weight, scales = blocks(96, 160, (64, 64))
    stored = StoredQuantization(method="fp8", format="fp8", bits=8, block=(64, 64))
    tensor = read_weight(stored, {"weight": weight, "weight_scale_inv": scales}, torch.float32)
    expected = torch.cat([tensor.dequantize()[:, start:stop] for start, stop in spans], dim=1)
    assert torch.equal(tensor.take_columns(spans).dequantize(), expected)


def test_pieces_that_no_kernel_reads_are_refused() -> None:
    weight, scales = blocks(96, 160, (64, 64))
    stored = StoredQuantization(method="fp8", format="fp8", bits=8, block=(64, 64))
    tensor = read_weight(stored, {"weight": weight, "weight_scale_inv": scales}, torch.float32)
    with pytest.raises(ValueError, match="groups of 32 inputs would be cut into pieces of 4"):
        tensor.take_columns([(0, 20)])
