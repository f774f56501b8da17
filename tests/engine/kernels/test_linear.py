"""Linear layers over packed weights against float64, and their bits."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from distllm.engine.kernels.library import runnable_levels
from distllm.engine.kernels.ops import CpuKernels, load_kernels
from distllm.engine.kernels.packed import Bf16Variant

SHAPES = [(16, 2), (1, 1), (5, 7), (100, 513), (576, 576), (33, 1100), (48, 1025), (130, 64)]
ROW_COUNTS = [1, 2, 3, 6, 7, 12, 13, 17, 64, 97, 130]


def variants(kernels: CpuKernels, dtype: torch.dtype) -> Iterator[Bf16Variant]:
    yield "fma"
    if dtype == torch.bfloat16 and kernels.has_bf16_dot:
        yield "dot"


def random_matrix(seed: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def assert_close_to_float64(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within what float32 sums of K terms may lose, and one rounding to the output's type."""
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    magnitude = x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
    rounding = 2**-8 if out.dtype == torch.bfloat16 else 2**-23
    assert bool(((out.double() - exact).abs() <= 2e-6 * magnitude + rounding * exact.abs()).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("features", "depth"), SHAPES)
def test_linear_agrees_with_float64(kernels: CpuKernels, dtype: torch.dtype, features: int, depth: int) -> None:
    weight = random_matrix(1, features, depth, dtype)
    bias = random_matrix(2, 1, features, dtype)[0]
    for variant, rows in itertools.product(variants(kernels, dtype), [1, 4, 9, 40]):
        packed = kernels.pack_linear(weight, variant)
        x = random_matrix(rows, rows, depth, dtype)
        assert_close_to_float64(kernels.linear(x, packed), x, weight, None)
        assert_close_to_float64(kernels.linear(x, packed, bias), x, weight, bias)
        wide = kernels.linear(x, packed, bias, out=torch.empty(rows, features))
        assert_close_to_float64(wide, x, weight, bias)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_the_other_type_are_not_rounded(kernels: CpuKernels, x_dtype: torch.dtype) -> None:
    other = torch.bfloat16 if x_dtype == torch.float32 else torch.float32
    weight, x = random_matrix(1, 70, 600, other), random_matrix(2, 5, 600, x_dtype)
    for variant in variants(kernels, other):
        out = kernels.linear(x, kernels.pack_linear(weight, variant), out=torch.empty(5, 70))
        assert_close_to_float64(out, x, weight, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(kernels: CpuKernels, dtype: torch.dtype) -> None:
    x = random_matrix(3, max(ROW_COUNTS), 1030, dtype)
    for variant in variants(kernels, dtype):
        packed = kernels.pack_linear(random_matrix(4, 90, 1030, dtype), variant)
        alone = torch.cat([kernels.linear(row[None], packed) for row in x])
        for rows in ROW_COUNTS:
            assert torch.equal(kernels.linear(x[:rows], packed), alone[:rows])
        assert torch.equal(kernels.linear(x.flip(0), packed).flip(0), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_do_not_depend_on_the_number_of_threads(kernels: CpuKernels, dtype: torch.dtype) -> None:
    x, weight = random_matrix(5, 70, 700, dtype), random_matrix(6, 200, 700, dtype)
    for variant in variants(kernels, dtype):
        outs = []
        for num_threads in (1, 2, 3):
            alone = load_kernels(kernels.isa, num_threads)
            assert isinstance(alone, CpuKernels)
            outs.append(alone.linear(x, alone.pack_linear(weight, variant)))
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])


def test_levels_with_fused_multiply_add_give_equal_bits() -> None:
    x, weight = random_matrix(7, 9, 800, torch.bfloat16), random_matrix(8, 100, 800, torch.bfloat16)
    outs = []
    for level in runnable_levels():
        kernels = load_kernels(level, 1)
        assert isinstance(kernels, CpuKernels)
        if level != "portable":
            outs.append(kernels.linear(x, kernels.pack_linear(weight, "fma"), out=torch.empty(9, 100)))
    assert all(torch.equal(outs[0], out) for out in outs[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_pack_as_their_concatenation(kernels: CpuKernels, dtype: torch.dtype) -> None:
    parts = [random_matrix(seed, rows, 51, dtype) for seed, rows in enumerate([20, 3, 1, 40])]
    together = kernels.pack_linear(torch.cat(parts), "fma")
    packed = kernels.pack_linear(parts, "fma")
    assert torch.equal(packed.panels, together.panels)
    assert (packed.out_features, packed.in_features) == (64, 51)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("features", "depth"), SHAPES)
def test_rows_read_back_exactly(kernels: CpuKernels, dtype: torch.dtype, features: int, depth: int) -> None:
    weight = random_matrix(9, features, depth, dtype)
    ids = torch.randint(features, (40,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(kernels.linear_rows(kernels.pack_linear(weight, "fma"), ids), weight[ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transposed_weight_packs_like_its_copy(kernels: CpuKernels, dtype: torch.dtype) -> None:
    stored = random_matrix(10, 37, 60, dtype)  # [K, N], as GPT-2 keeps it
    packed = kernels.pack_linear(stored.T, "fma")
    assert torch.equal(packed.panels, kernels.pack_linear(stored.T.contiguous(), "fma").panels)


def test_strided_rows_are_read_and_written_in_place(kernels: CpuKernels) -> None:
    base, weight = random_matrix(11, 6, 100, torch.float32), random_matrix(12, 20, 40, torch.float32)
    packed, out = kernels.pack_linear(weight), torch.zeros(6, 50)
    kernels.linear(base[:, 30:70], packed, out=out[:, 10:30])
    assert torch.equal(out[:, 10:30], kernels.linear(base[:, 30:70].contiguous(), packed))
    assert not out[:, :10].any()
    assert not out[:, 30:].any()


def test_no_rows_give_no_rows(kernels: CpuKernels) -> None:
    packed = kernels.pack_linear(random_matrix(13, 20, 40, torch.float32))
    assert kernels.linear(torch.empty(0, 40), packed).shape == (0, 20)


def test_a_nan_stays_in_its_row(kernels: CpuKernels) -> None:
    x = random_matrix(14, 5, 64, torch.float32)
    x[2, 3] = torch.nan
    out = kernels.linear(x, kernels.pack_linear(random_matrix(15, 30, 64, torch.float32)))
    assert bool(out[2].isnan().all())
    assert int(out.isnan().sum()) == 30


def test_wrong_arguments_are_refused_by_name(kernels: CpuKernels) -> None:
    packed = kernels.pack_linear(torch.ones(8, 4))
    with pytest.raises(ValueError, match="x: expected contiguous rows"):
        kernels.linear(torch.ones(2, 5), packed)
    with pytest.raises(ValueError, match="x: expected contiguous rows"):
        kernels.linear(torch.ones(4, 2).T, packed)
    with pytest.raises(ValueError, match="x: expected float32 or bfloat16"):
        kernels.linear(torch.ones(2, 4, dtype=torch.float64), packed)
    with pytest.raises(ValueError, match="bias: expected 8"):
        kernels.linear(torch.ones(2, 4), packed, torch.ones(7))
    with pytest.raises(ValueError, match="out: expected 2 rows"):
        kernels.linear(torch.ones(2, 4), packed, out=torch.ones(3, 8))
    with pytest.raises(ValueError, match="does not go with"):
        kernels.pack_linear([torch.ones(8, 4), torch.ones(8, 5)])
    with pytest.raises(ValueError, match="weight: nothing to pack"):
        kernels.pack_linear([])
    for row in (-1, 8):
        with pytest.raises(ValueError, match="ids: rows run from 0 to 7"):
            kernels.linear_rows(packed, torch.tensor([row]))
    if not kernels.has_bf16_dot:
        with pytest.raises(ValueError, match="variant"):
            kernels.pack_linear(torch.ones(8, 4, dtype=torch.bfloat16), "dot")
