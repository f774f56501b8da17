"""Takes the weights of decoder layers out of memory as they come, and streams those that have no room in it."""

import dataclasses
import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distllm.engine.byte_size import byte_size
from distllm.engine.offload.lanes import Lane
from distllm.engine.offload.layer_tensors import LayerTensors
from distllm.engine.offload.residency import Residency
from distllm.engine.offload.ring import OnWait, wait_quietly
from distllm.engine.offload.stream import LayerStream

logger = logging.getLogger("distllm.engine")


class Offloader:
    """Keeps matrices that are used by one decoder layer alone; vectors and all else stay where they are."""

    def __init__(self, decoder_layers: Sequence[nn.Module], lane: Lane) -> None:
        self._modules = decoder_layers
        self._lane = lane
        self._tensors = [LayerTensors() for _ in decoder_layers]
        self._layer_of = {
            id(module): number for number, layer in enumerate(decoder_layers) for module in layer.modules()
        }

    @property
    def layer_bytes(self) -> list[int]:
        """What each layer's weights take, in whole pages."""
        return [layer.num_bytes for layer in self._tensors]

    def take_packed(self, users: Sequence[nn.Module], packed: Any) -> None:
        """Move a packed weight's tensors out of memory, if its users all lie in one decoder layer.

        A packed weight is a dataclass; whatever fields of it are tensors hold the weight.
        """
        numbers = {self._layer_of.get(id(user)) for user in users}
        if len(numbers) == 1 and (number := numbers.pop()) is not None:
            for field in dataclasses.fields(packed):
                value = getattr(packed, field.name)
                if isinstance(value, Tensor):
                    self._take(number, value)

    @torch.inference_mode()
    def take_parameters(self, model: nn.Module, device: torch.device) -> int:
        """Where nothing was packed: the layers' matrices out of memory and everything else to `device`.

        Returns the bytes of what was moved out.
        """
        users: dict[int, set[int | None]] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                users.setdefault(id(parameter), set()).add(self._layer_of.get(id(module)))
        for number, layer in enumerate(self._modules):
            for parameter in layer.parameters():
                if parameter.dim() > 1 and users[id(parameter)] == {number}:
                    self._take(number, parameter)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.to(device, copy=True)
        return sum(self.layer_bytes)

    def settle(self, residency: Residency, on_wait: OnWait = wait_quietly) -> None:
        """Bring residents back for good and stream each of the rest whenever it runs, until the model goes.

        `on_wait` is called while a forward pass waits for a layer.
        """
        self._lane.start()
        residents = sorted(set(range(len(self._modules))) - set(residency.streamed))
        for number in residents:
            layer = self._tensors[number]
            buffer = self._lane.allocate(layer.num_bytes)
            self._lane.fill(buffer, layer)
            layer.bind(self._lane.begin_use(buffer))
            self._lane.drop(layer)
        _log(residency, len(self._modules), self._lane.name)
        if not residency.streamed:
            self._lane.close()
            return
        stream = LayerStream(self._tensors, residency, self._lane, on_wait)
        for number in residency.streamed:
            stream.attach(self._modules[number], number)
        weakref.finalize(self._modules[0], stream.close)

    def _take(self, number: int, tensor: Tensor) -> None:
        self._tensors[number].add(tensor, self._lane.keep(tensor))


def _log(residency: Residency, num_layers: int, origin: str) -> None:
    num_streamed = len(residency.streamed)
    if not num_streamed:
        logger.info("all %d layers fit in memory: nothing streams", num_layers)
        return
    logger.info(
        "%d of %d layers stay in memory; %d stream from %s, %s a step, through %d buffers of %s",
        num_layers - num_streamed,
        num_layers,
        num_streamed,
        origin,
        byte_size(residency.streamed_bytes),
        residency.num_slots,
        byte_size(residency.slot_bytes),
    )
