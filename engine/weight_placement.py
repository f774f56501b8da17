"""Puts a loaded model's weights where they compute: quantized, packed for the kernels, out of memory in turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distllm.engine.compute import Compute
from distllm.engine.config import EngineConfig
from distllm.engine.decoder_layers import NoDecoderLayers, find_decoder_layers
from distllm.engine.distributed.group import RankGroup
from distllm.engine.injection.packing import leave_packed, pack_weights
from distllm.engine.injection.plain_weights import leave_plain, place_plain_weights
from distllm.engine.injection.probe import DiscoveredLayer
from distllm.engine.injection.quantizing import Schemes, choose_schemes, choose_schemes_by_layer
from distllm.engine.injection.unread_weight import UnreadWeight
from distllm.engine.injection.weights import weights_of
from distllm.engine.memory import giving_back_freed_memory
from distllm.engine.offload.errors import OffloadError
from distllm.engine.offload.lanes import Lane
from distllm.engine.offload.offloader import Offloader
from distllm.engine.offload.start import Settled, settle_layers
from distllm.engine.pool_size import PoolNeed
from distllm.engine.progress import Progress
from distllm.engine.quantization.by_layer import by_layer


@dataclass(frozen=True, slots=True)
class PlacedWeights:
    """What became of them. `num_bytes` are in memory, or brought in every step where layers are `offloaded`."""

    schemes: Schemes
    num_bytes: int
    offloaded: Settled | None


@dataclass(frozen=True, slots=True)
class WeightPlacement:
    """Where the weights of one rank go. `lane` None keeps all of them on `device`."""

    config: EngineConfig
    compute: Compute
    device: torch.device
    lane: Lane | None
    group: RankGroup | None
    on_progress: Progress

    def place(
        self, model: PreTrainedModel, layers: Sequence[DiscoveredLayer], need: PoolNeed, *, embeds: bool = True
    ) -> PlacedWeights:
        """Leave no weight of `model` as it was loaded. Raises OutOfMemory, QuantizationError or OffloadError.

        `need` is the KV pool that shares the memory with layers that are offloaded. A stage that is not the first
        one `embeds` nothing.
        """
        schemes = self._schemes(model, layers, embeds)
        if self.lane is None:
            return PlacedWeights(schemes, self._inject(model, schemes, None), None)
        try:
            decoder_layers = find_decoder_layers(model, [layer.module for layer in layers])
        except NoDecoderLayers as error:
            raise OffloadError(f"{error}: start without --offload") from None
        offloader = Offloader(model, decoder_layers, self.lane)
        with giving_back_freed_memory():
            num_bytes = self._inject(model, schemes, offloader)
        settled = settle_layers(offloader, self.config, need, num_bytes, self.device, self.group)
        return PlacedWeights(schemes, num_bytes, settled)

    def _schemes(self, model: PreTrainedModel, layers: Sequence[DiscoveredLayer], embeds: bool) -> Schemes:
        if self.config.layer_quantization:
            decoder_layers = find_decoder_layers(model, [layer.module for layer in layers])
            configs = [*by_layer(self.config.layer_quantization)]
            return choose_schemes_by_layer(model, decoder_layers, configs, embeds=embeds)
        quantization = self.config.quantization
        return {} if quantization is None else choose_schemes(model, quantization)

    def _inject(self, model: PreTrainedModel, schemes: Schemes, offloader: Offloader | None) -> int:
        """Quantize what `schemes` names, pack for the kernels, take layers out. Returns the bytes of all."""
        if self.compute.kernels is None:
            place_plain_weights(model, schemes, leave_plain if offloader is None else offloader.take_plain)
            if offloader is not None:
                offloader.move_rest(model, self.device)
            return _plain_bytes(model) + sum(() if offloader is None else offloader.layer_bytes)
        torch.set_num_threads(1)  # torch would split rows over threads where our kernels do not
        on_packed = leave_packed if offloader is None else offloader.take_packed
        report = partial(self.on_progress, "packing the weights")
        packed_bytes = pack_weights(model, self.compute.kernels, schemes, report, on_packed)
        return packed_bytes + _plain_bytes(model)


def _plain_bytes(model: PreTrainedModel) -> int:
    """Of all that is in memory and not packed."""
    return sum(
        int(weight.nbytes) if isinstance(weight, Tensor) else weight.num_bytes
        for weight in weights_of(model)
        if not isinstance(weight, UnreadWeight)
    )
