"""A decoder layer in one call against the same operations one by one, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distllm.engine.kernels.decoder_layer import DecoderLayer, LayerParts, Norm, Projection, StepRows
from distllm.engine.kernels.ops import CpuKernels

HIDDEN, INNER, DIM, HEADS, KV_HEADS = 40, 56, 12, 4, 2
NUM_BLOCKS = 6
ROWS = 9  # of two sequences: seven rows from position 14 on, and two from position 3 on


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_parts(kernels: CpuKernels, dtype: torch.dtype, *, has_head_norms: bool = False) -> LayerParts:
    def projection(seed: int, features: int, depth: int) -> Projection:
        weight = randn(seed, features, depth, dtype=dtype) / depth**0.5
        return Projection(kernels.pack_linear(weight), randn(seed + 1, features, dtype=dtype))

    def norm(seed: int, width: int) -> Norm:
        return Norm(randn(seed, width, dtype=dtype), 1e-5, "llama")

    return LayerParts(
        input_norm=norm(1, HIDDEN),
        mlp_norm=norm(2, HIDDEN),
        query_norm=norm(3, DIM) if has_head_norms else None,
        key_norm=norm(4, DIM) if has_head_norms else None,
        qkv=projection(5, (HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
        out=projection(7, HIDDEN, HEADS * DIM),
        gate_up=projection(9, 2 * INNER, HIDDEN),
        down=projection(11, HIDDEN, INNER),
        activation="silu_mul",
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        scale=DIM**-0.5,
        sliding_window=5,
    )


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query starts, numbers computed, block tables and slots."""
    tables = torch.tensor([[4, 1], [3, 0]], dtype=torch.int32)
    slots = [4 * 16 + 14, 4 * 16 + 15, *range(16, 21), 3 * 16 + 3, 3 * 16 + 4]
    starts, computed = torch.tensor([0, 7, 9], dtype=torch.int32), torch.tensor([14, 3], dtype=torch.int32)
    return starts, computed, tables, torch.tensor(slots)


def rotation(dtype: torch.dtype, width: int = DIM) -> tuple[Tensor, Tensor]:
    angles = randn(20, ROWS, width)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def one_by_one(kernels: CpuKernels, parts: LayerParts, x: Tensor, kv: tuple[Tensor, ...]) -> Tensor:
    def norm(norm: Norm, rows: Tensor) -> Tensor:
        return kernels.rms_norm(rows, norm.weight, norm.eps, norm.style)

    def multiply(projection: Projection, rows: Tensor) -> Tensor:
        return kernels.linear(rows, projection.panels, projection.bias)  # type: ignore[arg-type]

    starts, computed, tables, slots = batch()
    heads = multiply(parts.qkv, norm(parts.input_norm, x)).view(ROWS, -1, DIM)
    query, keys, values = heads[:, :HEADS], heads[:, HEADS:-KV_HEADS], heads[:, -KV_HEADS:]
    if parts.query_norm is not None and parts.key_norm is not None:
        query, keys = norm(parts.query_norm, query), norm(parts.key_norm, keys)
    for turned in (query, keys):
        kernels.rotary(turned, *rotation(x.dtype))
    kernels.write_kv(keys, values, *kv, slots)
    attended = kernels.paged_attention(
        query,
        kv[0],
        kv[1],
        starts,
        computed,
        tables,
        scale=parts.scale,
        sliding_window=parts.sliding_window,
        kv_scales=kv[2:],
    )
    h = x + multiply(parts.out, attended.flatten(1))
    return h + multiply(parts.down, kernels.silu_mul(multiply(parts.gate_up, norm(parts.mlp_norm, h))))


def filled_kv(kernels: CpuKernels, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """With keys and values in every slot."""
    kv = kernels.allocate_kv(NUM_BLOCKS, KV_HEADS, DIM, DIM, dtype)
    num_slots = NUM_BLOCKS * 16
    keys, values = randn(30, num_slots, KV_HEADS, DIM), randn(31, num_slots, KV_HEADS, DIM)
    kernels.write_kv(keys, values, *kv, torch.arange(num_slots))
    return kv


@pytest.mark.parametrize("has_head_norms", [False, True])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_gives_the_bits_of_the_single_operations(
    kernels: CpuKernels, dtype: torch.dtype, cache_dtype: torch.dtype | None, has_head_norms: bool
) -> None:
    parts, x = make_parts(kernels, dtype, has_head_norms=has_head_norms), randn(13, ROWS, HIDDEN, dtype=dtype)
    kv, others = (filled_kv(kernels, cache_dtype or dtype) for _ in range(2))
    layer, rows = DecoderLayer(kernels, parts), StepRows(kernels, rotation(dtype), *batch())
    with torch.inference_mode():
        assert torch.equal(layer(x, kv, rows), one_by_one(kernels, parts, x, others))
    for stored, other in zip(kv, others, strict=True):
        assert torch.equal(stored.view(torch.uint8), other.view(torch.uint8))


def test_weights_that_lie_elsewhere_are_found_there(kernels: CpuKernels) -> None:
    parts, x = make_parts(kernels, torch.float32), randn(13, ROWS, HIDDEN)
    layer, rows = DecoderLayer(kernels, parts), StepRows(kernels, rotation(torch.float32), *batch())
    kv = filled_kv(kernels, torch.float32)
    layer(x, kv, rows)
    for tensor in (parts.down.panels.panels, parts.mlp_norm.weight):  # type: ignore[union-attr]
        kept, moved = tensor.data, tensor.clone() * 2
        tensor.data = moved
        kept.fill_(torch.nan)
    with torch.inference_mode():
        assert torch.equal(layer(x, kv, rows), one_by_one(kernels, parts, x, kv))


def test_rows_and_blocks_outside_the_pool_are_refused(kernels: CpuKernels) -> None:
    layer, x = DecoderLayer(kernels, make_parts(kernels, torch.float32)), randn(13, ROWS, HIDDEN)
    kv = filled_kv(kernels, torch.float32)
    starts, computed, tables, slots = batch()
    far_slots, far_tables = slots.clone(), tables.clone()
    far_slots[2], far_tables[0, 1] = NUM_BLOCKS * 16, NUM_BLOCKS
    for wrong, words in (
        ((starts, computed, tables, far_slots), "of row 2 is outside"),
        ((starts, computed, far_tables, slots), "of sequence 0 are outside"),
        ((starts, computed, tables, slots[1:]), "slots: expected 9"),
    ):
        with pytest.raises(ValueError, match=words):
            layer(x, kv, StepRows(kernels, rotation(torch.float32), *wrong))


def test_rows_of_another_shape_or_type_are_refused(kernels: CpuKernels) -> None:
    layer, kv = DecoderLayer(kernels, make_parts(kernels, torch.float32)), filled_kv(kernels, torch.float32)
    rows = StepRows(kernels, rotation(torch.float32), *batch())
    for x in (randn(13, ROWS - 1, HIDDEN), randn(13, ROWS, HIDDEN - 1), randn(13, ROWS, HIDDEN).bfloat16()):
        with pytest.raises(ValueError, match="x: "):
            layer(x, kv, rows)
    wide = StepRows(kernels, rotation(torch.float32, DIM + 2), *batch())
    with pytest.raises(ValueError, match="cos: cannot turn 14 of 12"):
        layer(randn(13, ROWS, HIDDEN), kv, wide)


def test_a_cache_of_another_layer_is_refused(kernels: CpuKernels) -> None:
    layer = DecoderLayer(kernels, make_parts(kernels, torch.float32))
    rows = StepRows(kernels, rotation(torch.float32), *batch())
    with pytest.raises(ValueError, match="is not this layer's"):
        layer(randn(13, ROWS, HIDDEN), kernels.allocate_kv(NUM_BLOCKS, 4, DIM, DIM, torch.float32), rows)


def test_weights_that_do_not_follow_one_another_are_refused(kernels: CpuKernels) -> None:
    parts = make_parts(kernels, torch.float32)
    for name in ("qkv", "out", "gate_up", "down"):
        wrong = Projection(kernels.pack_linear(randn(1, 3, 5)), None)
        with pytest.raises(ValueError, match="expected a weight"):
            DecoderLayer(kernels, replace(parts, **{name: wrong}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not go together"):
        DecoderLayer(kernels, replace(parts, query_norm=parts.mlp_norm))
