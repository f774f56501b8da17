"""What the kernels ask of tensors: types, shapes, strides. Each check raises ValueError and names the argument."""

import torch
from torch import Tensor

from distllm.engine.interface import BLOCK_SIZE

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
"""The types that the kernels take, as bf16.h numbers them."""

KV_CODES = {torch.float32: 0, torch.bfloat16: 0, torch.int8: 1, torch.float8_e4m3fn: 2}
"""The types of a KV cache, as kv_codes.h numbers those that have scales; 0: none."""


def describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"


def check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPE_CODES or tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected float32 or bfloat16 on the CPU, got {tensor.dtype} on {tensor.device}")


def check_rows(name: str, tensor: Tensor, width: int) -> None:
    check_dtype(name, tensor)
    if tensor.dim() != 2 or tensor.shape[1] != width or (tensor.stride(1) != 1 and width > 1):
        raise ValueError(f"{name}: expected contiguous rows [T, {width}], got {describe(tensor)}")


def check_bias(bias: Tensor | None, width: int) -> None:
    if bias is not None:
        check_dtype("bias", bias)
        if bias.shape != (width,) or bias.stride(0) != 1:
            raise ValueError(f"bias: expected {width} contiguous elements, got {describe(bias)}")


def check_output(out: Tensor | None, x: Tensor, width: int) -> Tensor:
    """`out`, or room for [rows of x, width] of x's type."""
    if out is None:
        return torch.empty(x.shape[0], width, dtype=x.dtype)
    check_rows("out", out, width)
    if out.shape[0] != x.shape[0]:
        raise ValueError(f"out: expected {x.shape[0]} rows, got {out.shape[0]}")
    return out


def check_heads(name: str, tensor: Tensor) -> None:
    check_dtype(name, tensor)
    if tensor.dim() != 3 or (tensor.stride(2) != 1 and tensor.shape[2] > 1):
        raise ValueError(f"{name}: expected [T, heads, dim] with dim contiguous, got {describe(tensor)}")


def check_tables(cos: Tensor, sin: Tensor, num_rows: int, dtype: torch.dtype) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        check_rows(name, table, cos.shape[-1])
        if table.shape[0] != num_rows or table.dtype != dtype or table.stride(0) != cos.stride(0):
            raise ValueError(f"{name}: {describe(table)} does not go with {num_rows} rows of {dtype}")


def check_parts(parts: list[Tensor]) -> tuple[torch.dtype, int]:
    if not parts:
        raise ValueError("weight: nothing to pack")
    for part in parts:
        check_dtype("weight", part)
        if part.dim() != 2 or part.numel() == 0:
            raise ValueError(f"weight: expected a matrix [N, K], got {describe(part)}")
        if part.dtype != parts[0].dtype or part.shape[1] != parts[0].shape[1]:
            raise ValueError(f"weight: {describe(part)} does not go with {describe(parts[0])}")
    return parts[0].dtype, parts[0].shape[1]


def check_caches(keys: Tensor, values: Tensor, key_dim: int) -> None:
    for name, cache in (("key_cache", keys), ("value_cache", values)):
        if cache.dtype not in KV_CODES or cache.device.type != "cpu":
            raise ValueError(f"{name}: expected a KV cache on the CPU, got {cache.dtype} on {cache.device}")
        if cache.dim() != 4 or cache.shape[3] != BLOCK_SIZE or not cache.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous [blocks, heads, dim, {BLOCK_SIZE}], got {describe(cache)}"
            )
    if keys.shape[:2] != values.shape[:2] or keys.dtype != values.dtype:
        raise ValueError(f"value_cache: {describe(values)} does not go with key_cache: {describe(keys)}")
    if keys.shape[2] != key_dim + key_dim % 2:
        raise ValueError(f"key_cache: {describe(keys)} does not hold keys of {key_dim} dimensions")


def check_scales(scales: "tuple[Tensor, ...]", cache: Tensor) -> None:
    """Of keys and values where the cache holds codes; none where it does not."""
    if len(scales) != (2 if KV_CODES[cache.dtype] else 0):
        raise ValueError(f"scales: a cache of {cache.dtype} does not go with {len(scales)} tensors of scales")
    for each in scales:
        if each.dtype != torch.float32 or each.shape != (*cache.shape[:2], BLOCK_SIZE) or not each.is_contiguous():
            raise ValueError(f"scales: {describe(each)} does not go with the cache: {describe(cache)}")


def as_sinks(sinks: Tensor, num_heads: int) -> Tensor:
    if sinks.shape != (num_heads,):
        raise ValueError(f"sinks: expected one logit for each of {num_heads} heads, got {describe(sinks)}")
    return sinks.to(torch.float32).contiguous()


def check_indices(name: str, tensor: Tensor, dtype: torch.dtype, count: int) -> None:
    if tensor.dtype != dtype or tensor.shape != (count,) or not tensor.is_contiguous() or tensor.is_cuda:
        raise ValueError(f"{name}: expected {count} contiguous {dtype} on the CPU, got {describe(tensor)}")


def check_batch(query_starts: Tensor, num_computed: Tensor, tables: Tensor) -> int:
    """The number of sequences."""
    num_sequences = num_computed.shape[0]
    check_indices("query_starts", query_starts, torch.int32, num_sequences + 1)
    check_indices("num_computed", num_computed, torch.int32, num_sequences)
    if tables.dtype != torch.int32 or tables.dim() != 2 or len(tables) != num_sequences or tables.is_cuda:
        raise ValueError(
            f"block_tables: expected int32 [{num_sequences}, blocks] on the CPU, got {describe(tables)}"
        )
    if tables.shape[1] > 1 and tables.stride(1) != 1:
        raise ValueError(f"block_tables: rows must be contiguous, got {describe(tables)}")
    return num_sequences
