"""What placement and peers that measure must know of the model. Reads headers, and no weights."""

import json
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace
from safetensors import safe_open

from distllm.engine.activation import activation_bytes
from distllm.engine.checkpoint import StoredTensor, open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.messages import LayerSample, StageConfig, StoredSample
from distllm.engine.pipeline.placement.measurements import ModelSizes
from distllm.engine.pipeline.stage_model.plan import plan_stage
from distllm.engine.pipeline.stage_model.stage_numbers import StageNumbers, stage_numbers

_INDEX_DTYPES = ("I32", "I64")


@dataclass(frozen=True, slots=True)
class ModelSample:
    """The `whole` model, its sizes, and what peers time of it.

    `kv_token_bytes` is the KV of a token in one layer; `activation_bytes` stay free on every peer.
    """

    whole: StageConfig
    vocab_size: int
    sizes: ModelSizes
    kv_token_bytes: int
    activation_bytes: int
    sample: LayerSample


def sample_model(config: EngineConfig, whole: StageConfig) -> ModelSample:
    """Of the model `whole`. Raises CheckpointError where it cannot be cut into stages."""
    path, last = Path(config.model), whole.num_layers - 1
    stored = plan_stage(path, LayerRange(last, whole.num_layers, whole.num_layers)).checkpoint
    numbers = stage_numbers(open_checkpoint(path), config)
    vocab_size = int(stored.text_config["vocab_size"])
    return ModelSample(
        whole=whole,
        vocab_size=vocab_size,
        sizes=_sizes(numbers),
        kv_token_bytes=max(numbers.kv_token_bytes),
        activation_bytes=activation_bytes(whole.max_num_batched_tokens, vocab_size, numbers.width),
        sample=LayerSample(
            stage=replace(whole, begin=last),
            width=numbers.width,
            config_json=json.dumps(dict(stored.config)).encode(),
            tensors=tuple(map(_sample_tensor, stored.tensors.values())),
        ),
    )


def _sample_tensor(stored: StoredTensor) -> StoredSample:
    """With its content where it may be a shape or the order of groups: what codes mean depends on these."""
    content: bytes | None = None
    if stored.dtype in _INDEX_DTYPES and len(stored.shape) == 1:
        with safe_open(stored.shard, framework="pt") as file:
            content = file.get_tensor(stored.name).numpy().tobytes()
    return StoredSample(name=stored.name, dtype=stored.dtype, shape=stored.shape, content=content)


def _sizes(numbers: StageNumbers) -> ModelSizes:
    return ModelSizes(
        layer_bytes=numbers.layer_bytes,
        embedding_bytes=numbers.embedding_bytes,
        head_bytes=numbers.head_bytes,
        hidden_size=numbers.width,
        activation_bytes=numbers.activation_token_bytes,
        tied_bytes=numbers.tied_bytes,
    )
