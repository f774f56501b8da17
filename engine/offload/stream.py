"""Gives each streamed layer its weights for as long as it runs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from distllm.engine.offload.lanes import Lane
from distllm.engine.offload.layer_tensors import LayerTensors
from distllm.engine.offload.residency import Residency
from distllm.engine.offload.ring import OnWait, Ring


class LayerStream:
    """Owns the ring and the lane. Attached layers take their weights before their forward and then return them."""

    def __init__(self, layers: Sequence[LayerTensors], residency: Residency, lane: Lane, on_wait: OnWait) -> None:
        self._layers = layers
        self._lane = lane
        buffers = [lane.allocate(residency.slot_bytes) for _ in range(residency.num_slots)]
        self._ring: Ring[Any] = Ring(buffers, residency.streamed, self._fill, on_wait)
        self._held: Any = None

    def attach(self, module: nn.Module, number: int) -> None:
        """From now on `module` is the layer of this number."""
        module.register_forward_pre_hook(partial(self._enter, number))
        module.register_forward_hook(partial(self._leave, number), always_call=True)

    def close(self) -> None:
        """End the ring's thread and give up what the layers came from."""
        self._ring.close()
        self._lane.close()

    def _fill(self, buffer: Any, number: int) -> None:
        self._lane.fill(buffer, self._layers[number])

    def _enter(self, number: int, *_: Any) -> None:
        self._held = self._ring.take(number)
        self._layers[number].bind(self._lane.begin_use(self._held))

    def _leave(self, number: int, *_: Any) -> None:
        if self._held is None:  # the ring could give nothing
            return
        self._layers[number].unbind()
        self._lane.end_use(self._held)
        self._ring.give_back(self._held)
        self._held = None
