"""What stands in for a dense weight in transformers' modules, though it is no tensor.

torch hands a call to `__torch_function__` of any argument that has it. So nn.Linear, Conv1D, routers and tied
embeddings work unchanged on such a weight, and the dense one need not exist.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class WeightStandIn:
    """A weight [out_features, in_features], or as Conv1D keeps it where `is_transposed`."""

    is_transposed: bool

    def project(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `multiply`, through torch, so that a probe may leave the product out."""
        return functional.linear(x, self, bias)  # type: ignore[arg-type]

    @abstractmethod
    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""

    @abstractmethod
    def look_up(self, ids: Tensor) -> Tensor:
        """Rows of the weight: int64 [...] -> [..., in_features]."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        stand_in = _STAND_INS.get(func)
        if stand_in is None:
            name = getattr(func, "__name__", str(func))
            raise NotImplementedError(f"uses a weight in {name}, which has no kernel")
        return stand_in(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: WeightStandIn, bias: Tensor | None = None) -> Tensor:
    return weight.multiply(x, bias)


def _addmm(bias: Tensor, x: Tensor, weight: WeightStandIn) -> Tensor:
    assert weight.is_transposed
    return weight.multiply(x, bias)


def _embedding(ids: Tensor, weight: WeightStandIn, *_: Any, **__: Any) -> Tensor:
    return weight.look_up(ids)


_STAND_INS: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    torch.addmm: _addmm,
}
