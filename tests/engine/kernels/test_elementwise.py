"""Norms, gated activations and rotary embedding against transformers' modules and float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from distllm.engine.kernels.ops import CpuKernels

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 576), (33, 100), (5, 7), (40, 1536)]


def random_rows(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def assert_within_one_rounding(out: Tensor, expected: Tensor) -> None:
    """bf16 may differ where a float32 difference in the last place falls on a rounding boundary."""
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=2**-7 if out.dtype == torch.bfloat16 else 2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_rounds_where_transformers_does(
    kernels: CpuKernels, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    x = random_rows(1, *shape, dtype=dtype)
    llama, gemma = LlamaRMSNorm(shape[1], 1e-5).to(dtype), Gemma2RMSNorm(shape[1], 1e-5).to(dtype)
    for module in (llama, gemma):
        module.weight.data = random_rows(2, shape[1], dtype=dtype)
    with torch.inference_mode():
        assert_within_one_rounding(kernels.rms_norm(x, llama.weight, 1e-5), llama(x))
        assert_within_one_rounding(kernels.rms_norm(x, gemma.weight, 1e-5, "gemma"), gemma(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_over_heads_reads_strided_views(kernels: CpuKernels, dtype: torch.dtype) -> None:
    heads = random_rows(3, 9, 6 * 32, dtype=dtype)[:, 32:128].view(9, 3, 32)
    weight = random_rows(4, 32, dtype=dtype)
    out = kernels.rms_norm(heads, weight, 1e-6)
    flat = kernels.rms_norm(heads.reshape(27, 32), weight, 1e-6)
    assert torch.equal(out, flat.view(9, 3, 32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_activations_round_where_transformers_does(
    kernels: CpuKernels, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    x = random_rows(5, shape[0], 2 * shape[1], dtype=dtype)
    gate, up = x.chunk(2, -1)
    assert_within_one_rounding(kernels.silu_mul(x), functional.silu(gate) * up)
    exact = functional.gelu(gate.double(), approximate="tanh").to(dtype) * up
    torch.testing.assert_close(
        kernels.gelu_tanh_mul(x), exact, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )


def test_silu_survives_extreme_gates(kernels: CpuKernels) -> None:
    gate = torch.tensor([[-torch.inf, -1e30, -200.0, -88.0, 0.0, 88.0, 1e30, torch.nan]])
    out = kernels.silu_mul(torch.cat([gate, torch.ones_like(gate)], 1))[0]
    assert bool((out[1:4].abs() < 1e-7 * gate[0, 1:4].abs()).all())
    assert out[4:7].tolist() == [0.0, 88.0, pytest.approx(1e30)]
    assert bool(out[7].isnan())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 20])
def test_rotary_equals_transformers_bit_for_bit(kernels: CpuKernels, dtype: torch.dtype, width: int) -> None:
    x = random_rows(6, 11, 5 * 64, dtype=dtype)[:, 64:256].view(11, 3, 64)
    angle = random_rows(7, 11, width, dtype=torch.float32)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    turned = x[..., :width].transpose(0, 1)[None]
    expected = apply_rotary_pos_emb(turned, turned, cos[None], sin[None])[0][0].transpose(0, 1)
    rest = x[..., width:].clone()
    kernels.rotary(x, cos, sin)
    assert torch.equal(x[..., :width], expected)
    assert torch.equal(x[..., width:], rest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_keep_their_bits_alone_and_together(kernels: CpuKernels, dtype: torch.dtype) -> None:
    x, weight = random_rows(8, 50, 600, dtype=dtype), random_rows(9, 600, dtype=dtype)
    for operation in (lambda t: kernels.rms_norm(t, weight, 1e-6), kernels.silu_mul, kernels.gelu_tanh_mul):
        together = operation(x)
        assert torch.equal(together, torch.cat([operation(row[None]) for row in x]))


def test_wrong_arguments_are_refused_by_name(kernels: CpuKernels) -> None:
    with pytest.raises(ValueError, match="weight: expected 8"):
        kernels.rms_norm(torch.ones(2, 8), torch.ones(7), 1e-6)
    with pytest.raises(ValueError, match="gate_up: expected an even number"):
        kernels.silu_mul(torch.ones(2, 7))
    with pytest.raises(ValueError, match="cos: cannot turn 10 of 8"):
        kernels.rotary(torch.ones(2, 1, 8), torch.ones(2, 10), torch.ones(2, 10))
    with pytest.raises(ValueError, match="sin"):
        kernels.rotary(torch.ones(2, 1, 8), torch.ones(2, 8), torch.ones(3, 8))
