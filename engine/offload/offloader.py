"""Takes the weights of decoder layers out of memory as they come, and streams those that have no room in it."""

import dataclasses
import logging
import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distllm.engine.byte_size import byte_size
from distllm.engine.injection.weights import own_weights, weights_of
from distllm.engine.offload.lanes import Lane
from distllm.engine.offload.layer_tensors import LayerTensors
from distllm.engine.offload.residency import Residency
from distllm.engine.offload.ring import OnWait, wait_quietly
from distllm.engine.offload.stream import LayerStream
from distllm.engine.quantization.weight import QuantizedWeight

logger = logging.getLogger("distllm.engine")


class Offloader:
    """Keeps matrices that are used by one decoder layer alone; vectors and all else stay where they are."""

    def __init__(self, model: nn.Module, decoder_layers: Sequence[nn.Module], lane: Lane) -> None:
        self._modules = decoder_layers
        self._lane = lane
        self._tensors = [LayerTensors() for _ in decoder_layers]
        self._layer_of = {
            id(module): number for number, layer in enumerate(decoder_layers) for module in layer.modules()
        }
        self._sharing = _modules_that_share(model)

    @property
    def layer_bytes(self) -> list[int]:
        """What each layer's weights take, in whole pages."""
        return [layer.num_bytes for layer in self._tensors]

    def take_packed(self, users: Sequence[nn.Module], packed: Any) -> None:
        """Move a packed weight's tensors out of memory, if its users all lie in one decoder layer."""
        numbers = {self._layer_of.get(id(user)) for user in users}
        if len(numbers) == 1 and (number := numbers.pop()) is not None:
            self._take_fields(number, packed)

    @torch.inference_mode()
    def take_plain(self, module: nn.Module) -> None:
        """Where nothing is packed: move a module's own matrices out of memory, quantized ones with their scales.

        To be called with the modules of one layer after those of another.
        """
        number = self._layer_of.get(id(module))
        if number is None or id(module) in self._sharing:
            return
        for weight in own_weights(module):
            if isinstance(weight, QuantizedWeight):
                self._take_fields(number, weight.tensor)
            elif isinstance(weight, Tensor) and weight.dim() > 1:
                self._take(number, weight)

    @torch.inference_mode()
    def move_rest(self, model: nn.Module, device: torch.device) -> None:
        """Move what was not taken to `device`, and away from the checkpoint's mapped files."""
        quantized = (weight.tensor for weight in weights_of(model) if isinstance(weight, QuantizedWeight))
        fields = (field for tensor in quantized for field in _tensors_in(tensor))
        for tensor in (*model.parameters(), *model.buffers(), *fields):
            tensor.data = tensor.data.to(device, copy=True)

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

    def _take_fields(self, number: int, packed: Any) -> None:
        for tensor in _tensors_in(packed):
            self._take(number, tensor)

    def _take(self, number: int, tensor: Tensor) -> None:
        self._tensors[number].add(tensor, self._lane.keep(tensor))


def _modules_that_share(model: nn.Module) -> set[int]:
    """Identities of the modules that have a weight in common with another."""
    users: dict[int, list[int]] = defaultdict(list)
    for module in model.modules():
        for weight in own_weights(module):
            users[id(weight)].append(id(module))
    return {module for modules in users.values() if len(modules) > 1 for module in modules}


def _tensors_in(packed: Any) -> list[Tensor]:
    """The fields of a dataclass that are tensors: together they hold a packed or quantized weight."""
    values = (getattr(packed, field.name) for field in dataclasses.fields(packed))
    return [value for value in values if isinstance(value, Tensor)]


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
