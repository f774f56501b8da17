"""A packed weight stands in for the dense one wherever torch multiplies with it or looks rows up."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.kernels.ops import CpuKernels, load_kernels

GENERATOR = torch.Generator().manual_seed(1)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    loaded = load_kernels(num_threads=2)
    assert isinstance(loaded, CpuKernels)
    return loaded


def give(module: nn.Module, packed: PackedWeight) -> None:
    del module._parameters["weight"]
    module.weight = packed  # type: ignore[assignment]


def test_a_linear_layer_multiplies_with_it(kernels: CpuKernels) -> None:
    layer, x = nn.Linear(12, 21), randn(2, 3, 12)
    expected = layer(x)
    give(layer, PackedWeight(kernels, kernels.pack_linear(layer.weight.detach())))
    with torch.inference_mode():
        assert torch.allclose(layer(x), expected, atol=1e-5)
        assert layer(x[:, :0]).shape == (2, 0, 21)


def test_a_conv1d_multiplies_with_it_transposed(kernels: CpuKernels) -> None:
    layer, x = Conv1D(21, 12), randn(2, 3, 12)
    expected = layer(x)
    packed = kernels.pack_linear(layer.weight.detach().T)
    give(layer, PackedWeight(kernels, packed, is_transposed=True))
    with torch.inference_mode():
        assert torch.allclose(layer(x), expected, atol=1e-5)
    assert layer.weight.shape == (12, 21)


def test_an_embedding_reads_its_rows(kernels: CpuKernels) -> None:
    layer, ids = nn.Embedding(21, 12, dtype=torch.bfloat16), torch.tensor([[3, 20, 0]])
    expected = layer(ids)
    give(layer, PackedWeight(kernels, kernels.pack_linear(layer.weight.detach())))
    with torch.inference_mode():
        assert torch.equal(layer(ids), expected)


def test_parts_of_one_product_are_those_of_each_weight(kernels: CpuKernels) -> None:
    weights, biases, x = [randn(5, 12), randn(20, 12)], [randn(5), randn(20)], randn(4, 12)
    panels = kernels.pack_linear(weights)
    parts = [PackedWeight(kernels, panels, rows) for rows in (slice(0, 5), slice(5, 25))]
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        assert part.shape == weight.shape
        assert torch.allclose(part.project(x, bias), functional.linear(x, weight, bias), atol=1e-5)
        assert torch.equal(part.look_up(torch.tensor([4, 0])), weight[[4, 0]])


def test_rows_that_are_not_contiguous_are_multiplied_too(kernels: CpuKernels) -> None:
    weight, x = randn(7, 12), randn(12, 5).T
    packed = PackedWeight(kernels, kernels.pack_linear(weight))
    assert torch.allclose(packed.project(x), x @ weight.T, atol=1e-5)


def test_float32_inputs_meet_the_exact_bf16_weight(kernels: CpuKernels) -> None:
    weight, x = randn(7, 12).bfloat16(), randn(4, 12)
    packed = PackedWeight(kernels, kernels.pack_linear(weight))
    assert torch.allclose(functional.linear(x, packed.float()), x @ weight.float().T, atol=1e-5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot become"):
        packed.to(torch.float16)


def test_any_other_use_says_what_has_no_kernel(kernels: CpuKernels) -> None:
    packed = PackedWeight(kernels, kernels.pack_linear(randn(7, 12)))
    with pytest.raises(NotImplementedError, match="uses a weight in matmul, which has no kernel"):
        torch.matmul(randn(2, 7), packed)  # type: ignore[arg-type]
