"""What placing a model's stages needs to know of it, told from headers before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distllm.engine.checkpoint import Checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.dtypes import resolve_dtype
from distllm.engine.injection.attention import resolve_kv_dtype
from distllm.engine.injection.stored_weights import PlaceFinder
from distllm.engine.loading import build_on_meta, load_config
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.decoder_parts import DecoderParts, find_decoder_parts
from distllm.engine.quantization.config import QuantizationConfig
from distllm.engine.quantization.footprint import tensor_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNumbers:
    """Bytes of weights as they are served, and of what one token takes of each layer's KV and on the wire.

    `layer_bytes` and `kv_token_bytes` are by layer. `embedding_bytes` are what the first stage has beside its
    layers, `head_bytes` what the last one has; `tied_bytes` of either are the same weights. `dtype` is what all
    stages must compute in. `width` is how long the activations of a token are.
    """

    dtype: str
    layer_bytes: tuple[int, ...]
    kv_token_bytes: tuple[int, ...]
    embedding_bytes: int
    head_bytes: int
    tied_bytes: int
    width: int
    activation_token_bytes: int

    @property
    def num_layers(self) -> int:
        return len(self.layer_bytes)

    def weight_bytes(self, layers: LayerRange) -> int:
        """Of all weights that a stage of `layers` holds."""
        num_bytes = sum(self.layer_bytes[layers.begin : layers.end])
        num_bytes += self.embedding_bytes * layers.is_first + self.head_bytes * layers.is_last
        return num_bytes - self.tied_bytes * (layers.is_first and layers.is_last)


def stage_numbers(
    checkpoint: Checkpoint, config: EngineConfig, quantizations: Sequence[QuantizationConfig | None]
) -> list[StageNumbers]:
    """The figures of a checkpoint, of which all headers must be known, for `config.device`; `auto` counts as a CPU.

    One for each of `quantizations`, in place of the config's.

    Raises CheckpointError where the model cannot be cut into stages.
    """
    device_type = "cpu" if config.device == "auto" else config.device
    name = resolve_dtype(config.dtype, checkpoint, device_type)
    dtype: torch.dtype = getattr(torch, name)
    model = build_on_meta(checkpoint, load_config(checkpoint), dtype)
    place = PlaceFinder(model)
    parts = find_decoder_parts(model)
    owners = {stored: place.parameter_of(stored) or "" for stored in checkpoint.tensors}
    kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype)
    kv_token_bytes = tuple(shape.num_bytes(1, kv_dtype) for shape in parts.shapes)
    numbers = []
    for quantization in quantizations:
        sizes = tensor_bytes(checkpoint, quantization, dtype.itemsize)
        by_parameter = [(owners[stored], num_bytes) for stored, num_bytes in sizes.items()]
        numbers.append(_numbers_of(parts, by_parameter, dtype, kv_token_bytes))
    return numbers


def _numbers_of(
    parts: DecoderParts,
    by_parameter: list[tuple[str, int]],
    dtype: torch.dtype,
    kv_token_bytes: tuple[int, ...],
) -> StageNumbers:
    return StageNumbers(
        dtype=str(dtype).removeprefix("torch."),
        layer_bytes=_layer_bytes(parts, by_parameter),
        kv_token_bytes=kv_token_bytes,
        embedding_bytes=sum(size for parameter, size in by_parameter if parameter in parts.before),
        head_bytes=sum(size for parameter, size in by_parameter if parameter in parts.after),
        tied_bytes=sum(size for parameter, size in by_parameter if parameter in parts.before & parts.after),
        width=parts.width,
        activation_token_bytes=parts.width * dtype.itemsize,
    )


def _layer_bytes(parts: DecoderParts, by_parameter: list[tuple[str, int]]) -> tuple[int, ...]:
    depth = parts.layers[0].count(".") + 1
    totals = dict.fromkeys(parts.layers, 0)
    for parameter, num_bytes in by_parameter:
        layer = ".".join(parameter.split(".")[:depth])
        if layer in totals:
            totals[layer] += num_bytes
    return tuple(totals.values())
