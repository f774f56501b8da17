"""What placement and peers that measure must know of the model. Reads headers, and no weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from msgspec.structs import replace
from safetensors import safe_open

from distllm.engine.activation import activation_bytes
from distllm.engine.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.coordinator.arithmetic import wished
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.messages import Hello, LayerSample, StageConfig, StoredSample
from distllm.engine.pipeline.placement.measurements import ModelSizes
from distllm.engine.pipeline.stage_model.plan import plan_stage
from distllm.engine.pipeline.stage_model.stage_numbers import StageNumbers, stage_numbers
from distllm.engine.quantization.config import QuantizationConfig, QuantizationWish

_INDEX_DTYPES = ("I32", "I64")


@dataclass(frozen=True, slots=True)
class ModelSample:
    """The `whole` model, its sizes, and what peers time of it.

    `kv_token_bytes` is the KV of a token in one layer; `activation_bytes` stay free on every peer. `other_sizes`
    has the model's sizes where it is quantized as peers may wish and `whole` is not.
    """

    whole: StageConfig
    vocab_size: int
    sizes: ModelSizes
    kv_token_bytes: int
    activation_bytes: int
    sample: LayerSample
    other_sizes: Mapping[QuantizationConfig | None, ModelSizes] = field(default_factory=dict)
    stored_quantization: str | None = None

    def why_refused(self, hello: Hello) -> str | None:
        """Why a peer cannot have layers of this model as it wishes."""
        if hello.quantization in (None, "none") or self.stored_quantization is None:
            return None
        return (
            f"{self.whole.model} is stored quantized ({self.stored_quantization}) and cannot be quantized again: "
            f"start this peer without --quantization {hello.quantization}"
        )

    def sizes_of(self, quantization: QuantizationConfig | None) -> ModelSizes:
        """The whole model's, quantized so; as `whole` is where it cannot be."""
        return self.other_sizes.get(quantization, self.sizes)

    def sizes_by_layer(self, quantization: Sequence[QuantizationConfig | None]) -> ModelSizes:
        """Where that is each layer's; the embedding is as the first layer, the head as the last."""
        sizes = [self.sizes_of(each) for each in quantization]
        return ModelSizes(
            layer_bytes=tuple(each.layer_bytes[number] for number, each in enumerate(sizes)),
            embedding_bytes=sizes[0].embedding_bytes,
            head_bytes=sizes[-1].head_bytes,
            hidden_size=self.sizes.hidden_size,
            activation_bytes=self.sizes.activation_bytes,
            tied_bytes=sizes[0].tied_bytes if quantization[0] == quantization[-1] else 0,
            quantization=tuple("" if each is None else each.name for each in quantization),
        )

    def sample_of(self, quantization: QuantizationConfig | None) -> LayerSample:
        """What a peer times that would have its layers so."""
        stage = replace(self.sample.stage, quantization=quantization)
        return replace(self.sample, stage=stage)


def sample_model(config: EngineConfig, whole: StageConfig) -> ModelSample:
    """Of the model `whole`. Raises CheckpointError where it cannot be cut into stages."""
    path, last = Path(config.model), whole.num_layers - 1
    stored = plan_stage(path, LayerRange(last, whole.num_layers, whole.num_layers)).checkpoint
    checkpoint = open_checkpoint(path)
    usual, *others = _quantizations(checkpoint, config.quantization)
    numbers, *other_numbers = stage_numbers(checkpoint, config, [usual, *others])
    vocab_size = int(stored.text_config["vocab_size"])
    return ModelSample(
        whole=whole,
        vocab_size=vocab_size,
        sizes=_sizes(numbers, usual),
        stored_quantization=None if checkpoint.quantization is None else checkpoint.quantization.name,
        other_sizes={it: _sizes(its, it) for it, its in zip(others, other_numbers, strict=True)},
        kv_token_bytes=max(numbers.kv_token_bytes),
        activation_bytes=activation_bytes(whole.max_num_batched_tokens, vocab_size, numbers.width),
        sample=LayerSample(
            stage=replace(whole, begin=last),
            width=numbers.width,
            config_json=json.dumps(dict(stored.config)).encode(),
            tensors=tuple(map(_sample_tensor, stored.tensors.values())),
        ),
    )


def _quantizations(checkpoint: Checkpoint, usual: QuantizationConfig | None) -> list[QuantizationConfig | None]:
    """The usual one, and what else peers may wish; what is stored quantized stays as it is."""
    wishes: tuple[QuantizationWish, ...] = () if checkpoint.quantization is not None else get_args(QuantizationWish)
    return [*dict.fromkeys([usual, *(wished(wish, usual) for wish in wishes)])]


def _sample_tensor(stored: StoredTensor) -> StoredSample:
    """With its content where it may be a shape or the order of groups: what codes mean depends on these."""
    content: bytes | None = None
    if stored.dtype in _INDEX_DTYPES and len(stored.shape) == 1:
        with safe_open(stored.shard, framework="pt") as file:
            content = file.get_tensor(stored.name).numpy().tobytes()
    return StoredSample(name=stored.name, dtype=stored.dtype, shape=stored.shape, content=content)


def _sizes(numbers: StageNumbers, quantization: QuantizationConfig | None) -> ModelSizes:
    return ModelSizes(
        layer_bytes=numbers.layer_bytes,
        embedding_bytes=numbers.embedding_bytes,
        head_bytes=numbers.head_bytes,
        hidden_size=numbers.width,
        activation_bytes=numbers.activation_token_bytes,
        tied_bytes=numbers.tied_bytes,
        quantization=("" if quantization is None else quantization.name,) * numbers.num_layers,
    )
