"""Leads the attention of transformers' models to the paged KV cache.

transformers asks its AttentionInterface for a function by the name in the config and calls it with the attention
module first. Ours finds the module's PagedLayer on the module itself, so no state is global. Its masks come from an
AttentionMaskInterface of the same name; ours makes none, but says how far back the rows may see.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from distllm.engine.attention.interface import (
    QUANTIZED_KV,
    AttentionBackend,
    AttentionBatch,
    AttentionCall,
    LayerKV,
    indexable,
)
from distllm.engine.config import KvCacheDtypeName

ATTENTION_NAME = "distllm_paged"
CHECKED_NAME = "distllm_paged_checked"
"""The same attention for a probe: refuses a mask that is neither causal nor a sliding window."""

_LAYER_ATTRIBUTE = "distllm_layer"

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' masks by index: (batch, head, query, key) -> whether the query sees the key."""


class AttentionLayer(Protocol):
    """What answers a module's attention call: the paged cache, or a probe."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
        """query, keys, values: [num_tokens, heads, dim] -> [num_tokens, num_heads, value_dim]."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The KV that one attention module keeps for a token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    def num_bytes(self, num_tokens: int, dtype: torch.dtype) -> int:
        scale_bytes = 2 * torch.float32.itemsize if dtype in QUANTIZED_KV else 0
        head_bytes = (self.key_dim + self.value_dim) * dtype.itemsize + scale_bytes
        return num_tokens * self.num_kv_heads * head_bytes


def resolve_kv_dtype(name: KvCacheDtypeName, dtype: torch.dtype) -> torch.dtype:
    """The type of a cache's elements; `auto` is `dtype`, that of the weights."""
    return {"auto": dtype, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[name]


class PagedCache:
    """The KV of every layer, and the batch of the step under way."""

    def __init__(
        self, backend: AttentionBackend, shapes: Sequence[LayerShape], num_blocks: int, dtype: torch.dtype
    ) -> None:
        self.backend = backend
        self.layers = [
            PagedLayer(
                self, backend.allocate(num_blocks, shape.num_kv_heads, shape.key_dim, shape.value_dim, dtype)
            )
            for shape in shapes
        ]
        self.batch: AttentionBatch | None = None

    @contextmanager
    def running(self, batch: AttentionBatch) -> Iterator[None]:
        """While it holds, attention calls are about `batch`."""
        self.batch = batch
        try:
            yield
        finally:
            self.batch = None

    def copy_blocks(self, sources: Tensor, destinations: Tensor) -> None:
        """Copy the KV of blocks `sources` [n] to `destinations` [n] in every layer."""
        for layer in self.layers:
            for stored in map(indexable, layer.kv):
                stored[destinations] = stored[sources]


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """One attention module's part of the cache."""

    cache: PagedCache
    kv: LayerKV

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
        batch, backend = self.cache.batch, self.cache.backend
        assert batch is not None, "attention was called outside a step"
        backend.write(self.kv, keys, values, batch)
        return backend.attend(query, self.kv, batch, call)


@dataclass(frozen=True, slots=True)
class Visibility:
    """What stands where transformers' models hand a mask to attention: all else follows from the batch."""

    sliding_window: int


def register_attention() -> None:
    """Make `ATTENTION_NAME` and `CHECKED_NAME` known to transformers."""
    for name, make_mask in ((ATTENTION_NAME, _visibility), (CHECKED_NAME, _checked_visibility)):
        AttentionInterface.register(name, _attend)
        AttentionMaskInterface.register(name, make_mask)


def attach(module: nn.Module, layer: AttentionLayer) -> None:
    """Let `layer` answer the attention calls of `module`."""
    object.__setattr__(module, _LAYER_ATTRIBUTE, layer)


def detach(module: nn.Module) -> None:
    module.__dict__.pop(_LAYER_ATTRIBUTE, None)


def attend(module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
    """Store the rows' keys and values and attend: [num_tokens, heads, dim] -> [num_tokens, heads, value_dim]."""
    return layer_of(module).attend(query, keys, values, call)


def layer_of(module: nn.Module) -> AttentionLayer:
    """What answers the attention calls of `module`."""
    layer: AttentionLayer = module.__dict__[_LAYER_ATTRIBUTE]
    return layer


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Visibility | Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' side of `attend`: tensors are [1, heads, num_tokens, dim], the result has tokens first.

    Some models tell their window here, some by their mask alone.
    """
    if isinstance(attention_mask, Visibility):
        sliding_window = attention_mask.sliding_window
    elif attention_mask is not None:
        raise NotImplementedError("it attends with a mask of its own")
    call = AttentionCall(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return attend(module, _as_rows(query), _as_rows(key), _as_rows(value), call).unsqueeze(0), None


def _as_rows(tensor: Tensor) -> Tensor:
    """[1, heads, num_tokens, dim] -> [num_tokens, heads, dim] with `dim` contiguous, a view where it can be."""
    rows = tensor.squeeze(0).transpose(0, 1)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _visibility(*_: Any, local_size: int | None = None, **__: Any) -> Visibility | None:
    return None if local_size is None else Visibility(local_size)


def _checked_visibility(
    *_: Any, mask_function: MaskFunction, local_size: int | None = None, **__: Any
) -> Visibility | Tensor | None:
    """A tensor, with which no layer may attend, where the mask at the edges of its window is another one."""
    window = local_size or 8
    edges = torch.tensor([0, 1, window - 1, window, window + 1, 2 * window, 2 * window + 1])
    queries, keys = torch.meshgrid(edges, edges, indexing="ij")
    zeros = torch.zeros_like(queries)
    wanted = mask_function(zeros, zeros, queries, keys)
    if not torch.equal(wanted, (keys <= queries) & ((keys > queries - window) | (local_size is None))):
        return wanted
    return _visibility(local_size=local_size)
