"""Paged attention against float64 over random batches, and its bits."""

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from distllm.engine.attention.interface import AttentionBatch, AttentionCall, LayerKV
from distllm.engine.attention.paged_cpu import PagedCpuAttention
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.kernels.ops import CpuKernels, load_kernels

FLOAT32, BF16 = torch.float32, torch.bfloat16


@dataclass
class Sequence:
    """Keys and values of every position, and how many of the last ones this step computes."""

    keys: Tensor  # [length, num_kv_heads, key_dim]
    values: Tensor  # [length, num_kv_heads, value_dim]
    num_rows: int
    query: Tensor  # [num_rows, num_heads, key_dim]

    @property
    def num_computed(self) -> int:
        return len(self.keys) - self.num_rows


@dataclass
class Paged:
    """Sequences laid out over scattered blocks of a cache that held NaN everywhere before."""

    backend: PagedCpuAttention
    sequences: list[Sequence]
    cache_dtype: torch.dtype
    seed: int = 0
    tables: list[Tensor] = field(init=False)
    layer_kv: LayerKV = field(init=False)

    def __post_init__(self) -> None:
        num_blocks = sum(-(-len(s.keys) // BLOCK_SIZE) for s in self.sequences) + 2
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(self.seed)).int()
        first = self.sequences[0]
        heads, key_dim, value_dim = first.keys.shape[1], first.keys.shape[2], first.values.shape[2]
        self.layer_kv = self.backend.allocate(num_blocks, heads, key_dim, value_dim, self.cache_dtype)
        self.layer_kv[0][:, :, :key_dim].fill_(torch.nan)
        if key_dim % 2:
            self.layer_kv[0].zero_()
        self.layer_kv[1].fill_(torch.nan)
        sizes = [-(-len(s.keys) // BLOCK_SIZE) for s in self.sequences]
        self.tables = list(torch.split(order[: sum(sizes)], sizes))
        for table, sequence in zip(self.tables, self.sequences, strict=True):
            whole = batch_of([table], [0], [len(sequence.keys)])
            self.backend.write(self.layer_kv, sequence.keys, sequence.values, whole)

    def attend(self, call: AttentionCall, order: list[int] | None = None) -> list[Tensor]:
        """Each sequence's rows, from one call over the sequences in `order`."""
        order = list(range(len(self.sequences))) if order is None else order
        chosen = [self.sequences[i] for i in order]
        counts = [s.num_rows for s in chosen]
        batch = batch_of([self.tables[i] for i in order], [s.num_computed for s in chosen], counts)
        out = self.backend.attend(torch.cat([s.query for s in chosen]), self.layer_kv, batch, call)
        return list(torch.split(out, counts))

    def attend_chunk(self, call: AttentionCall, index: int, first: int, count: int) -> Tensor:
        """Rows first .. first + count of one sequence, alone in a call."""
        sequence = self.sequences[index]
        batch = batch_of([self.tables[index]], [sequence.num_computed + first], [count])
        return self.backend.attend(sequence.query[first : first + count], self.layer_kv, batch, call)


def batch_of(tables: list[Tensor], num_computed: list[int], counts: list[int]) -> AttentionBatch:
    padded = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)
    slots = []
    for table, computed, count in zip(tables, num_computed, counts, strict=True):
        positions = torch.arange(computed, computed + count)
        slots.append(table.long()[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    return AttentionBatch(starts, torch.tensor(num_computed).int(), padded, torch.cat(slots))


def exact_attention(sequence: Sequence, call: AttentionCall) -> Tensor:
    """[num_rows, num_heads, value_dim] in float64."""
    group = sequence.query.shape[1] // sequence.keys.shape[1]
    keys = sequence.keys.double().repeat_interleave(group, 1)
    values = sequence.values.double().repeat_interleave(group, 1)
    scores = torch.einsum("thd,lhd->htl", sequence.query.double(), keys) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    row = torch.arange(sequence.num_computed, len(keys))[:, None]
    column = torch.arange(len(keys))[None]
    hidden = column > row
    if call.sliding_window is not None:
        hidden |= column <= row - call.sliding_window
    scores = scores.masked_fill(hidden, -torch.inf)
    if call.sinks is not None:
        sink = call.sinks.double()[:, None, None].expand(-1, len(row), 1)
        return torch.einsum("htl,lhd->thd", torch.cat([scores, sink], -1).softmax(-1)[..., :-1], values)
    return torch.einsum("htl,lhd->thd", scores.softmax(-1), values)


def random_sequence(
    rng: random.Random, shape: tuple[int, int, int, int], cache_dtype: torch.dtype, query_dtype: torch.dtype
) -> Sequence:
    """`shape` is (kv heads, query heads a kv head, key_dim, value_dim)."""
    heads, group, key_dim, value_dim = shape
    num_rows, computed = rng.choice([1, 1, 5, 70]), rng.choice([0, 0, 3, 64, 150])
    generator = torch.Generator().manual_seed(rng.randrange(10**6))
    length = computed + num_rows
    return Sequence(
        torch.randn(length, heads, key_dim, generator=generator).to(cache_dtype),
        torch.randn(length, heads, value_dim, generator=generator).to(cache_dtype),
        num_rows,
        torch.randn(num_rows, heads * group, key_dim, generator=generator).to(query_dtype),
    )


def random_case(seed: int) -> tuple[list[Sequence], torch.dtype, AttentionCall]:
    rng = random.Random(seed)
    key_dim = rng.choice([5, 8, 16, 64, 72, 80, 128])
    value_dim = rng.choice([key_dim, key_dim, 8, 24])
    heads, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 7, 50])
    cache_dtype, query_dtype = rng.choice([FLOAT32, BF16]), rng.choice([FLOAT32, BF16])
    shape = (heads, group, key_dim, value_dim)
    sequences = [random_sequence(rng, shape, cache_dtype, query_dtype) for _ in range(rng.randint(1, 3))]
    sinks = torch.randn(heads * group) if rng.random() < 0.3 else None
    call = AttentionCall(key_dim**-0.5, rng.choice([None, 1, 17, 100]), rng.choice([None, None, 5.0]), sinks)
    return sequences, cache_dtype, call


@pytest.mark.parametrize("seed", range(25))
def test_attention_agrees_with_float64(kernels: CpuKernels, seed: int) -> None:
    sequences, cache_dtype, call = random_case(seed)
    paged = Paged(PagedCpuAttention(kernels), sequences, cache_dtype)
    for sequence, out in zip(sequences, paged.attend(call), strict=True):
        rounds = out.dtype == BF16  # outputs, and with dot products the weights too
        tolerance = 2e-2 if rounds else 5e-6
        torch.testing.assert_close(out.double(), exact_attention(sequence, call), atol=tolerance, rtol=0)


@pytest.mark.parametrize("seed", range(12))
def test_the_bits_of_a_row_depend_on_nothing_around_it(kernels: CpuKernels, seed: int) -> None:
    sequences, cache_dtype, call = random_case(1000 + seed)
    paged = Paged(PagedCpuAttention(kernels), sequences, cache_dtype)
    together = paged.attend(call)
    backwards = paged.attend(call, list(range(len(sequences)))[::-1])[::-1]
    for index, (sequence, out) in enumerate(zip(sequences, together, strict=True)):
        assert torch.equal(out, backwards[index])
        for size in (1, 7, 60):
            starts = range(0, sequence.num_rows, size)
            chunks = [paged.attend_chunk(call, index, i, min(size, sequence.num_rows - i)) for i in starts]
            assert torch.equal(out, torch.cat(chunks))


@pytest.mark.parametrize("seed", range(4))
def test_the_bits_depend_neither_on_threads_nor_on_block_ids(kernels: CpuKernels, seed: int) -> None:
    sequences, cache_dtype, call = random_case(2000 + seed)
    outs = []
    for num_threads in (1, 2, 3):
        alone = load_kernels(kernels.isa, num_threads)
        assert isinstance(alone, CpuKernels)
        paged = Paged(PagedCpuAttention(alone), sequences, cache_dtype, seed=num_threads)
        outs.append(torch.cat(paged.attend(call)))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_what_a_block_held_before_is_never_seen(kernels: CpuKernels) -> None:
    """Paged fills the cache with NaN before it writes: an odd number of tokens leaves half a pair of it."""
    rng = random.Random(1)
    for dtype in (FLOAT32, BF16):
        sequence = random_sequence(rng, (2, 2, 64, 64), dtype, dtype)
        paged = Paged(PagedCpuAttention(kernels), [sequence], dtype)
        for num_rows in range(1, sequence.num_rows + 1):
            assert not paged.attend_chunk(AttentionCall(0.125), 0, 0, num_rows).isnan().any()


def test_a_copied_block_serves_like_its_source(kernels: CpuKernels) -> None:
    sequences = [random_sequence(random.Random(3), (2, 2, 24, 24), BF16, BF16)]
    paged = Paged(PagedCpuAttention(kernels), sequences, BF16)
    before = paged.attend(AttentionCall(0.2))[0]
    spare = next(i for i in range(len(paged.layer_kv[0])) if i not in paged.tables[0])
    source = int(paged.tables[0][0])
    for cache in paged.layer_kv:
        cache[spare].copy_(cache[source])
        cache[source].fill_(torch.nan)
    paged.tables[0][0] = spare
    assert torch.equal(paged.attend(AttentionCall(0.2))[0], before)


def test_strided_views_of_fused_projections_are_read_in_place(kernels: CpuKernels) -> None:
    qkv = torch.randn(40, 8 * 32, generator=torch.Generator().manual_seed(5)).to(BF16)
    query, keys, values = (part.view(40, -1, 32) for part in torch.split(qkv, [128, 64, 64], 1))
    plain = Sequence(keys.contiguous(), values.contiguous(), 40, query.contiguous())
    views = Sequence(keys, values, 40, query)
    backend = PagedCpuAttention(kernels)
    outs = [Paged(backend, [sequence], BF16).attend(AttentionCall(0.2))[0] for sequence in (plain, views)]
    assert torch.equal(outs[0], outs[1])


def test_slots_and_blocks_out_of_bounds_are_refused(kernels: CpuKernels) -> None:
    backend = PagedCpuAttention(kernels)
    layer_kv = backend.allocate(3, 1, 8, 8, FLOAT32)
    rows = torch.ones(1, 1, 8)
    for block in (-1, 3):
        batch = batch_of([torch.tensor([block], dtype=torch.int32)], [0], [1])
        with pytest.raises(ValueError, match="slots: slot"):
            backend.write(layer_kv, rows, rows, batch)
        with pytest.raises(ValueError, match="sequence 0"):
            backend.attend(rows, layer_kv, batch, AttentionCall(1.0))
    short = batch_of([torch.tensor([0, 1], dtype=torch.int32)], [16], [1])
    short.block_tables.resize_(1, 1)
    with pytest.raises(ValueError, match="sequence 0"):
        backend.attend(rows, layer_kv, short, AttentionCall(1.0))


def test_tensors_that_do_not_fit_are_refused(kernels: CpuKernels) -> None:
    backend = PagedCpuAttention(kernels)
    layer_kv = backend.allocate(3, 2, 8, 8, FLOAT32)
    batch = batch_of([torch.tensor([0], dtype=torch.int32)], [0], [1])
    rows = torch.ones(1, 2, 8)
    with pytest.raises(ValueError, match="key_cache"):
        backend.write(layer_kv, torch.ones(1, 2, 16), rows, batch)
    with pytest.raises(ValueError, match="values"):
        backend.write(layer_kv, rows, torch.ones(1, 2, 4), batch)
    with pytest.raises(ValueError, match="3 heads cannot share 2 kv heads"):
        backend.attend(torch.ones(1, 3, 8), layer_kv, batch, AttentionCall(1.0))
    with pytest.raises(ValueError, match="sliding_window"):
        backend.attend(rows, layer_kv, batch, AttentionCall(1.0, sliding_window=0))
    with pytest.raises(ValueError, match="sinks"):
        backend.attend(rows, layer_kv, batch, AttentionCall(1.0, sinks=torch.ones(3)))
    with pytest.raises(ValueError, match="dtype"):
        backend.allocate(3, 2, 8, 8, torch.float16)
