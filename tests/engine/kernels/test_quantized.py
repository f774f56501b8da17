"""Linear layers over quantized weights: against the dequantized weight in float64, and their bits."""

import pytest
import torch
from torch import Tensor

from distllm.engine.kernels.library import runnable_levels
from distllm.engine.kernels.ops import CpuKernels, load_kernels
from distllm.engine.kernels.quantized import pack_quantized, quantized_linear, quantized_rows
from distllm.engine.quantization.config import WeightScheme
from distllm.engine.quantization.quantizer import quantize
from distllm.engine.quantization.tensor import QuantizedTensor

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        WeightScheme(bits=8),
        WeightScheme(bits=8, symmetric=False),
        WeightScheme(bits=8, group_size=32),
        WeightScheme(bits=4, group_size=32),
        WeightScheme(bits=4, group_size=16, symmetric=False),
        WeightScheme(bits=4, group_size=128),
        WeightScheme(bits=8, dynamic_activations=True),
        WeightScheme(bits=8, group_size=64, symmetric=False, dynamic_activations=True),
    )
}
GROUPED_SHAPES = [(16, 128), (5, 256), (100, 640), (33, 1152)]
SHAPES = [(1, 1), (5, 7), (100, 513), (48, 1025)]
ROW_COUNTS = [1, 2, 3, 6, 7, 12, 13, 17, 64, 97, 130]


def random_matrix(seed: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fp8_tensor(weight: Tensor, num_groups: int = 1) -> QuantizedTensor:
    groups = weight.float().view(len(weight), num_groups, -1)
    scales = groups.abs().amax(-1) / 448
    values = groups / scales.unsqueeze(-1)
    codes = values.flatten(1).to(torch.float8_e4m3fn).view(torch.uint8)
    return QuantizedTensor(codes, scales, None, "fp8", weight.dtype)


def as_multiplied(x: Tensor, tensor: QuantizedTensor) -> Tensor:
    """The inputs after the rounding that dynamic activations ask for, float64."""
    if not tensor.is_dynamic:
        return x.double()
    top = x.float().abs().amax(-1, keepdim=True)
    return (x.float() * (torch.tensor(127.0) / top)).round().double() * (top / 127).double()


def assert_close_to_float64(out: Tensor, x: Tensor, tensor: QuantizedTensor, bias: Tensor | None = None) -> None:
    inputs, weight = as_multiplied(x, tensor), tensor.dequantize(torch.float64)
    shift = torch.zeros(out.shape[1]).double() if bias is None else bias.double()
    exact, magnitude = inputs @ weight.T + shift, inputs.abs() @ weight.abs().T + shift.abs()
    rounding = 2**-8 if out.dtype == torch.bfloat16 else 2**-23
    assert bool(((out.double() - exact).abs() <= 4e-6 * magnitude + rounding * exact.abs()).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEMES)
def test_products_are_those_of_the_dequantized_weight(kernels: CpuKernels, dtype: torch.dtype, name: str) -> None:
    for features, depth in GROUPED_SHAPES if SCHEMES[name].group_size else [*SHAPES, *GROUPED_SHAPES]:
        tensor = quantize(random_matrix(1, features, depth, dtype), SCHEMES[name])
        panels, bias = pack_quantized(kernels, tensor), random_matrix(2, 1, features, dtype)[0]
        for rows in (1, 4, 9, 40):
            x = random_matrix(rows, rows, depth, dtype)
            assert_close_to_float64(quantized_linear(kernels, x, panels), x, tensor)
            wide = quantized_linear(kernels, x, panels, bias, out=torch.empty(rows, features))
            assert_close_to_float64(wide, x, tensor, bias)


@pytest.mark.parametrize("num_groups", [1, 8])
def test_fp8_codes_are_multiplied_exactly_down_to_the_smallest(kernels: CpuKernels, num_groups: int) -> None:
    weight = random_matrix(1, 40, 512, torch.bfloat16)
    weight[0] *= 10.0 ** -torch.arange(512).div(50)
    tensor, x = fp8_tensor(weight, num_groups), random_matrix(2, 7, 512, torch.bfloat16)
    assert num_groups > 1 or bool((tensor.codes[0] & 0x7F < 8).any()), "no subnormal number is tried"
    assert_close_to_float64(quantized_linear(kernels, x, pack_quantized(kernels, tensor)), x, tensor)


def test_float32_inputs_are_not_rounded_to_meet_a_bf16_weight(kernels: CpuKernels) -> None:
    tensor = quantize(random_matrix(1, 70, 640, torch.bfloat16), SCHEMES["w4g32"])
    x = random_matrix(2, 5, 640, torch.float32)
    assert_close_to_float64(quantized_linear(kernels, x, pack_quantized(kernels, tensor)), x, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEMES)
def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(
    kernels: CpuKernels, dtype: torch.dtype, name: str
) -> None:
    x = random_matrix(3, max(ROW_COUNTS), 1152, dtype)
    panels = pack_quantized(kernels, quantize(random_matrix(4, 90, 1152, dtype), SCHEMES[name]))
    alone = torch.cat([quantized_linear(kernels, row[None], panels) for row in x])
    for rows in ROW_COUNTS:
        assert torch.equal(quantized_linear(kernels, x[:rows], panels), alone[:rows])
    assert torch.equal(quantized_linear(kernels, x.flip(0), panels).flip(0), alone)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_bits_do_not_depend_on_the_number_of_threads(kernels: CpuKernels, name: str) -> None:
    x, outs = random_matrix(5, 70, 640, torch.bfloat16), []
    tensor = quantize(random_matrix(6, 200, 640, torch.bfloat16), SCHEMES[name])
    for num_threads in (1, 2, 3):
        alone = load_kernels(kernels.isa, num_threads)
        assert isinstance(alone, CpuKernels)
        outs.append(quantized_linear(alone, x, pack_quantized(kernels, tensor)))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("name", SCHEMES)
def test_whole_number_products_have_equal_bits_on_every_level_with_fused_multiply_add(name: str) -> None:
    x, outs = random_matrix(7, 9, 640, torch.bfloat16), []
    tensor = quantize(random_matrix(8, 100, 640, torch.bfloat16), SCHEMES[name])
    for level in runnable_levels():
        kernels = load_kernels(level, 1)
        assert isinstance(kernels, CpuKernels)
        if level != "portable":
            outs.append(quantized_linear(kernels, x, pack_quantized(kernels, tensor), out=torch.empty(9, 100)))
    assert all(torch.equal(outs[0], out) for out in outs[1:])


@pytest.mark.parametrize("name", SCHEMES)
def test_rows_read_back_are_those_of_the_dequantized_weight(kernels: CpuKernels, name: str) -> None:
    tensor = quantize(random_matrix(9, 70, 256, torch.bfloat16), SCHEMES[name])
    ids = torch.randint(70, (40,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(quantized_rows(pack_quantized(kernels, tensor), ids), tensor.dequantize()[ids])


def test_sorted_inputs_meet_their_columns(kernels: CpuKernels) -> None:
    order = torch.randperm(256, generator=torch.Generator().manual_seed(2))
    weight, x = random_matrix(1, 20, 256, torch.float32), random_matrix(2, 3, 256, torch.float32)
    sorted_codes = quantize(weight[:, order], SCHEMES["w4g32"])
    tensor = QuantizedTensor(sorted_codes.codes, sorted_codes.scales, None, "int4", torch.float32, order)
    panels = pack_quantized(kernels, tensor)
    assert_close_to_float64(quantized_linear(kernels, x, panels), x, tensor)
    assert (tensor.dequantize() - weight).abs().max() < tensor.scales.max()
    assert torch.equal(quantized_rows(panels, torch.tensor([7])), tensor.dequantize()[7:8])


@pytest.mark.parametrize("name", ["w4g32", "w8a8"])
@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(kernels: CpuKernels, name: str, fault: float) -> None:
    x = random_matrix(14, 5, 128, torch.float32)
    x[2, 3] = fault
    panels = pack_quantized(kernels, quantize(random_matrix(15, 30, 128, torch.float32), SCHEMES[name]))
    finite = quantized_linear(kernels, x, panels).isfinite()
    assert not bool(finite[2].any())
    assert bool(finite[[0, 1, 3, 4]].all())


def test_a_row_of_zeros_gives_zeros_with_dynamic_activations(kernels: CpuKernels) -> None:
    panels = pack_quantized(kernels, quantize(random_matrix(1, 30, 128, torch.float32), SCHEMES["w8a8"]))
    assert not bool(quantized_linear(kernels, torch.zeros(2, 128), panels).any())


def test_groups_without_a_kernel_are_refused(kernels: CpuKernels) -> None:
    tensor = quantize(random_matrix(1, 8, 24, torch.float32), WeightScheme(bits=8, group_size=12))
    with pytest.raises(ValueError, match="groups of 12 inputs have no kernel"):
        pack_quantized(kernels, tensor)
