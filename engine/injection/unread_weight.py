"""A dense weight that is still in the checkpoint's files: read, cut and converted when it is packed or used.

torch hands a call to `__torch_function__` of any argument that has it, so transformers' modules work unchanged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class UnreadWeight:
    """A weight of `shape` and `dtype` in host memory, made by `load` each time that it is needed."""

    device = torch.device("cpu")
    _is_hf_initialized = True  # or transformers would draw it at random, as it does with what is missing

    def __init__(self, load: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.load = load
        self.shape = torch.Size(shape)
        self.dtype = dtype

    @property
    def dense_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def project(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., in_features] -> [..., out_features], through torch, so that a probe may leave the product out."""
        return functional.linear(x, self, bias)  # type: ignore[arg-type]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        read = [arg.load() if isinstance(arg, UnreadWeight) else arg for arg in args]
        return func(*read, **(kwargs or {}))
