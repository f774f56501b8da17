"""A KV cache of codes with a scale for each token and head: against what the codes mean, and bit against bit."""

import random

import pytest
import torch
from torch import Tensor

from distllm.engine.attention.interface import AttentionBatch, AttentionCall, LayerKV
from distllm.engine.attention.paged_cpu import PagedCpuAttention
from distllm.engine.attention.reference import ReferenceAttention
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.kernels.ops import CpuKernels, load_kernels

CODES = [torch.int8, torch.float8_e4m3fn]
LENGTH = 150


def meaning(rows: Tensor, codes: torch.dtype) -> Tensor:
    """rows [length, heads, dim] after they were stored, float64."""
    most = 127.0 if codes == torch.int8 else 448.0
    largest = rows.float().abs().amax(-1, keepdim=True)
    scaled = rows.float() * (torch.tensor(most) / largest)
    if codes == torch.float8_e4m3fn:  # subnormal numbers are not stored
        scaled = torch.where(scaled.abs() < 2**-6, (scaled * 64).round() / 64, scaled)
    stored = scaled.round() if codes == torch.int8 else scaled.to(codes)
    return stored.double() * (largest / most).double()


def batch_of(table: Tensor, computed: int, count: int) -> AttentionBatch:
    positions = torch.arange(computed, computed + count)
    slots = table.long()[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    return AttentionBatch(torch.tensor([0, count]).int(), torch.tensor([computed]).int(), table[None], slots)


def exact(query: Tensor, keys: Tensor, values: Tensor, computed: int, call: AttentionCall) -> Tensor:
    """query [rows, heads, dim] at positions computed .., in float64."""
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("thd,lhd->htl", query.double(), keys) * call.scale
    rows, columns = torch.arange(computed, computed + len(query))[:, None], torch.arange(len(keys))[None]
    hidden = columns > rows
    if call.sliding_window is not None:
        hidden |= columns <= rows - call.sliding_window
    return torch.einsum("htl,lhd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


class Layer:
    """One sequence of LENGTH tokens in scattered blocks of a cache whose scales were NaN before."""

    def __init__(
        self, kernels: CpuKernels, codes: torch.dtype, shape: tuple[int, int, int, int], dtype: torch.dtype
    ):
        heads, group, key_dim, value_dim = shape
        generator = torch.Generator().manual_seed(1)
        self.keys = torch.randn(LENGTH, heads, key_dim, generator=generator).to(dtype)
        self.values = (torch.randn(LENGTH, heads, value_dim, generator=generator) * 3).to(dtype)
        self.query = torch.randn(LENGTH, heads * group, key_dim, generator=generator).to(dtype)
        self.backend = PagedCpuAttention(kernels)
        self.table = torch.randperm(12, generator=generator).int()[:10]
        self.kv: LayerKV = self.backend.allocate(12, heads, key_dim, value_dim, codes)
        for scales in self.kv[2:]:
            scales.fill_(torch.nan)
        self.backend.write(self.kv, self.keys, self.values, batch_of(self.table, 0, LENGTH))

    def attend(self, first: int, count: int, call: AttentionCall) -> Tensor:
        rows = self.query[first : first + count]
        return self.backend.attend(rows, self.kv, batch_of(self.table, first, count), call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 1, 5, 8), (3, 2, 72, 24), (1, 50, 16, 16), (2, 1, 128, 40)])
def test_attention_is_that_of_what_the_codes_mean(
    kernels: CpuKernels, codes: torch.dtype, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    layer = Layer(kernels, codes, shape, dtype)
    keys, values = meaning(layer.keys, codes), meaning(layer.values, codes)
    for window in (None, 17):
        call = AttentionCall(shape[2] ** -0.5, window)
        expected = exact(layer.query, keys, values, 0, call)
        tolerance = (6e-5 if codes == torch.int8 else 2e-5) if dtype == torch.float32 else 0.03
        assert (layer.attend(0, LENGTH, call).double() - expected).abs().max() < tolerance * values.abs().max()


@pytest.mark.parametrize("codes", CODES)
def test_the_bits_of_a_row_do_not_depend_on_chunks_or_threads(kernels: CpuKernels, codes: torch.dtype) -> None:
    call, rng = AttentionCall(0.125), random.Random(1)
    layer = Layer(kernels, codes, (2, 3, 64, 64), torch.bfloat16)
    whole = layer.attend(0, LENGTH, call)
    first = 0
    while first < LENGTH:
        count = min(rng.choice([1, 1, 7, 40]), LENGTH - first)
        assert torch.equal(layer.attend(first, count, call), whole[first : first + count])
        first += count
    for num_threads in (1, 3):
        alone = load_kernels(kernels.isa, num_threads)
        assert isinstance(alone, CpuKernels)
        alone.bf16_variant = kernels.bf16_variant
        assert torch.equal(Layer(alone, codes, (2, 3, 64, 64), torch.bfloat16).attend(0, LENGTH, call), whole)


@pytest.mark.parametrize("codes", CODES)
def test_the_reference_stores_the_same_codes(codes: torch.dtype) -> None:
    kernels = load_kernels("portable", 1)
    assert isinstance(kernels, CpuKernels)
    layer, call = Layer(kernels, codes, (2, 3, 64, 64), torch.float32), AttentionCall(0.125)
    reference = ReferenceAttention(torch.device("cpu"))
    kv = reference.allocate(12, 2, 64, 64, codes)
    batch = batch_of(layer.table, 0, LENGTH)
    reference.write(kv, layer.keys, layer.values, batch)
    assert kv[0].dtype == codes
    stored = layer.keys.new_tensor(0) + kv[0].flatten(0, 1)[batch.slot_mapping].float()
    assert torch.equal(
        stored * kv[2].flatten(0, 1)[batch.slot_mapping][..., None], meaning(layer.keys, codes).float()
    )
    assert (reference.attend(layer.query, kv, batch, call) - layer.attend(0, LENGTH, call)).abs().max() < 1e-3


@pytest.mark.parametrize("codes", CODES)
def test_rows_of_zeros_and_of_what_is_not_finite_are_told_apart(kernels: CpuKernels, codes: torch.dtype) -> None:
    backend, table, call = PagedCpuAttention(kernels), torch.tensor([1]).int(), AttentionCall(1.0)
    kv = backend.allocate(2, 1, 8, 8, codes)
    rows = torch.zeros(3, 1, 8)
    backend.write(kv, rows, rows, batch_of(table, 0, 3))
    assert not bool(backend.attend(rows, kv, batch_of(table, 0, 3), call).any())
    rows[1, 0, 2] = torch.inf
    backend.write(kv, rows, rows, batch_of(table, 0, 3))
    assert backend.attend(rows[:1], kv, batch_of(table, 0, 1), call).isfinite().all()
    assert backend.attend(rows[:1], kv, batch_of(table, 1, 1), call).isnan().all()


def test_a_cache_of_codes_takes_half_of_bf16_and_scales(kernels: CpuKernels) -> None:
    kv = kernels.allocate_kv(4, 3, 64, 64, torch.int8)
    assert sum(each.nbytes for each in kv) == 4 * 16 * 3 * (64 + 64 + 2 * 4)
    with pytest.raises(ValueError, match="does not go with 0 tensors of scales"):
        PagedCpuAttention(kernels).attend(
            torch.zeros(1, 3, 64), LayerKV(kv[:2]), batch_of(torch.tensor([0]).int(), 0, 1), AttentionCall(1.0)
        )
