"""Tells, at level DEBUG, what a start makes of a model and how long each stage takes."""

import logging
import time
from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn

from distllm.engine.distributed.sharding import Sharding
from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.injection.quantizing import Schemes
from distllm.engine.injection.weights import weights_of
from distllm.engine.pipeline.layer_range import LayerRange

logger = logging.getLogger("distllm.engine")


class StageLog:
    """One line a stage, each with the seconds since the one before."""

    def __init__(self, rank: int, size: int) -> None:
        self._prefix = "" if size == 1 else f"rank {rank} of {size} "
        self._last_s = time.monotonic()

    def loaded(self, model: nn.Module, sharding: Sharding | None, layers: LayerRange | None) -> None:
        num_bytes = sum(
            weight.nbytes if isinstance(weight, Tensor) else weight.dense_bytes for weight in weights_of(model)
        )
        if sharding is None:
            self._note(f"loaded {type(model).__name__}, {num_bytes:,} bytes, {layers or 'whole'}")
            return
        self._note(
            f"sharded {type(model).__name__}: {num_bytes:,} bytes, {len(sharding.parts)} parameters divided, "
            f"outputs added up after {len(sharding.rows) + len(sharding.experts)} modules "
            f"({_counted(name.rpartition('.')[2] for name in (*sharding.rows, *sharding.experts))})"
        )

    def quantized(self, model: nn.Module, schemes: Schemes) -> None:
        """With what they were packed into, where there are kernels."""
        num_packed = sum(isinstance(getattr(module, "weight", None), PackedWeight) for module in model.modules())
        chosen = _counted(scheme.name for scheme in schemes.values())
        self._note(f"quantized {chosen or 'nothing'}, packed {num_packed} weights for the kernels")

    def injected(self, model: nn.Module) -> None:
        ours = [type(module) for module in model.modules() if type(module).__module__.startswith("distllm.")]
        self._note(f"injected {_counted(kind.__name__ for kind in ours) or 'nothing'}")

    def checked(self) -> None:
        self._note("compared the logits with transformers' own")

    def _note(self, text: str) -> None:
        now_s = time.monotonic()
        logger.debug("%s%s in %.2f s", self._prefix, text, now_s - self._last_s)
        self._last_s = now_s


def _counted(names: Iterable[str]) -> str:
    """Such as "12 o_proj, 12 down_proj"."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())
