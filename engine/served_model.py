"""A checkpoint made ready to run: loaded, put on the kernels, checked. One rank's part of it, or the whole."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from distllm.engine.activation import activation_bytes
from distllm.engine.checkpoint import Checkpoint
from distllm.engine.compute import Compute, choose_compute
from distllm.engine.config import EngineConfig
from distllm.engine.context_length import resolve_length, supported_length
from distllm.engine.conversion.rank_checkpoint import open_for_rank
from distllm.engine.device import resolve_device
from distllm.engine.distributed.group import RankGroup
from distllm.engine.distributed.parallel_modules import connect, leave_to_first_rank
from distllm.engine.distributed.sharding import Sharding, plan_sharding
from distllm.engine.distributed.shrinking import shrink
from distllm.engine.distributed.unit import inner_unit
from distllm.engine.distributed.user_policy import policy_blocks
from distllm.engine.dtypes import resolve_dtype
from distllm.engine.forward import ModelForward
from distllm.engine.injection.attention import PagedCache, attach, resolve_kv_dtype
from distllm.engine.injection.injector import fuse_modules
from distllm.engine.injection.probe import DiscoveredLayer, discover_layers
from distllm.engine.injection.rotary import freeze_rotary
from distllm.engine.interface import BLOCK_SIZE, ExecutorInfo
from distllm.engine.loading import build_on_meta, check_loadable, load_config, load_weights
from distllm.engine.numerics import name_numerics
from distllm.engine.offload.start import Settled, open_lane
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.boundary import Boundary
from distllm.engine.pipeline.stage_model.cutting import cut, leave_anchor
from distllm.engine.pipeline.stage_model.plan import StagePlan, plan_stage
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from distllm.engine.pool_size import PoolNeed
from distllm.engine.progress import Progress
from distllm.engine.quantization.config import QuantizationConfig
from distllm.engine.quantization.family import numerics_family
from distllm.engine.self_check import NUM_BLOCKS, check_forward, plain_outputs
from distllm.engine.stage_log import StageLog
from distllm.engine.weight_placement import WeightPlacement


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model whose modules attend to a paged cache that it has yet to be given.

    `sharding` is None unless ranks share it, `boundary` unless it is a stage. `weight_bytes` are those that this
    process holds, or brings in every step where layers are `offloaded`.
    """

    model: PreTrainedModel
    layers: list[DiscoveredLayer]
    compute: Compute
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device
    max_model_len: int
    weight_bytes: int
    sharding: Sharding | None
    offloaded: Settled | None
    boundary: Boundary | None

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def pool_need(self, config: EngineConfig) -> PoolNeed:
        """What this process's part of the KV pool takes."""
        return _pool_need(config, self.model, self.layers, self.max_model_len, self.kv_dtype, self.boundary)

    def stage_over(self, num_blocks: int) -> StageForward:
        """The stage that this is, with a cache of so many blocks of its layers' KV."""
        assert self.boundary is not None, "the whole model is no stage"
        return StageForward(self.forward_over(num_blocks), self.boundary, self.dtype)

    def pool_config(self, config: EngineConfig, block_bytes: int) -> EngineConfig:
        """`config` with the part of the memory that the pool got, where layers and pool had to share it.

        `block_bytes` are those of a block of all ranks.
        """
        if self.offloaded is None or self.offloaded.num_blocks is None or config.num_blocks is not None:
            return config
        return replace(config, kv_cache_bytes=self.offloaded.num_blocks * block_bytes)

    def forward_over(self, num_blocks: int, kv_dtype: torch.dtype | None = None) -> ModelForward:
        """The model with a cache of so many blocks, in place of one that it had; of another type if asked."""
        shapes = [layer.shape for layer in self.layers]
        cache = PagedCache(self.compute.attention, shapes, num_blocks, kv_dtype or self.kv_dtype)
        for layer, paged in zip(self.layers, cache.layers, strict=True):
            attach(layer.module, paged)
        return ModelForward(self.model, cache, self.boundary)

    def info(self, num_blocks: int, block_bytes: int, weight_bytes: int, load_s: float) -> ExecutorInfo:
        """What an executor over this model tells of itself; bytes are those of all ranks."""
        size = 1 if self.sharding is None else self.sharding.size
        return ExecutorInfo(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            model_type=self.model.config.model_type,
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            kernels=self.compute.name,
            numerics=name_numerics(self.compute.numerics, size),
            weight_bytes=weight_bytes,
            kv_block_bytes=block_bytes,
            load_s=load_s,
            num_ranks=size,
            streamed_bytes=0 if self.offloaded is None else self.offloaded.streamed_bytes,
        )


@dataclass(frozen=True, slots=True)
class LoadedPart:
    """What this process holds of a model. `sharding` and `boundary` are as in ServedModel."""

    model: PreTrainedModel
    sharding: Sharding | None
    boundary: Boundary | None


def prepare_model(
    config: EngineConfig, on_progress: Progress, group: RankGroup | None = None, layers: LayerRange | None = None
) -> ServedModel:
    """Load `config.model`, or these `layers`, or the part of this rank of `group`, and put the kernels under it.

    Raises CheckpointError or ValueError, each with one line for the operator.
    """
    rank, size = (0, 1) if group is None else (group.rank, group.size)
    device = resolve_device(config.device, 0 if group is None else group.local_rank)
    stage = None if layers is None else plan_stage(Path(config.model), layers)
    checkpoint = open_for_rank(Path(config.model), rank, size) if stage is None else stage.checkpoint
    dtype: torch.dtype = getattr(torch, resolve_dtype(config.dtype, checkpoint, device.type))
    compute = choose_compute(config, device, dtype, numerics_family(checkpoint, config), group)
    lane = open_lane(config, device)
    on_progress("reading the checkpoint", 0.0)
    log = StageLog(rank, size)
    host = device if lane is None else torch.device("cpu")
    leaves_unread = compute.kernels is not None or lane is not None
    rank_of_size = None if group is None else (rank, size)
    part = load_part(checkpoint, config, dtype, host, rank_of_size, stage, leaves_unread=leaves_unread)
    model, sharding, boundary = part.model, part.sharding, part.boundary
    log.loaded(model, sharding, layers)
    attending = discover_layers(model, layers)
    max_model_len = resolve_length(config.max_model_len, supported_length(checkpoint.text_config))
    freeze_rotary(model, max_model_len)
    kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype)
    need = _pool_need(config, model, attending, max_model_len, kv_dtype, boundary)
    placement = WeightPlacement(config, compute, device, lane, group, on_progress)
    weights = placement.place(model, attending, need, embeds=boundary is None or boundary.layers.is_first)
    log.quantized(model, weights.schemes)
    num_bytes, offloaded = weights.num_bytes, weights.offloaded
    served = ServedModel(
        model, attending, compute, dtype, kv_dtype, device, max_model_len, num_bytes, sharding, offloaded, boundary
    )
    return _inject_modules(served, group, log)


def _inject_modules(served: ServedModel, group: RankGroup | None, log: StageLog) -> ServedModel:
    """Put our modules around the weights, and compare what the model computes then with what it did before."""
    model, layers = served.model, served.layers
    if served.sharding is not None and group is not None:
        connect(model, served.sharding, group)
    expected = plain_outputs(model, served.boundary)
    if served.compute.kernels is not None:
        layers = fuse_modules(model, layers, served.compute.kernels)
    log.injected(model)
    injected = replace(served, layers=layers)
    check_forward(injected.forward_over(NUM_BLOCKS, served.dtype), expected)
    log.checked()
    return injected


def check_division(config: EngineConfig, size: int, layers: LayerRange | None = None) -> None:
    """Raises CheckpointError or CannotDivide where `size` ranks cannot share the model, or these `layers` of it.

    Reads no weights.
    """
    stage = None if layers is None else plan_stage(Path(config.model), layers)
    checkpoint = open_for_rank(Path(config.model), 0, size) if stage is None else stage.checkpoint
    model, _ = _build(checkpoint, stage, torch.bfloat16, torch.device("meta"))
    blocks = None if config.injection_policy is None else policy_blocks(model, config.injection_policy)
    plan_sharding(model, 0, size, blocks, num_layers=None if layers is None else len(layers))


def _pool_need(
    config: EngineConfig,
    model: PreTrainedModel,
    layers: list[DiscoveredLayer],
    max_model_len: int,
    kv_dtype: torch.dtype,
    boundary: Boundary | None,
) -> PoolNeed:
    text = model.config.get_text_config()
    vocab_size = text.vocab_size if boundary is None or boundary.layers.is_last else 0
    return PoolNeed(
        block_bytes=sum(layer.shape.num_bytes(BLOCK_SIZE, kv_dtype) for layer in layers),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        activation_bytes=activation_bytes(config.max_num_batched_tokens, vocab_size, text.hidden_size),
    )


def load_part(
    checkpoint: Checkpoint,
    config: EngineConfig,
    dtype: torch.dtype,
    device: torch.device,
    rank_of_size: tuple[int, int] | None,
    stage: StagePlan | None = None,
    *,
    leaves_unread: bool = False,
) -> LoadedPart:
    """The whole model or a `stage`, or what a rank of several holds of it. Raises CheckpointError or CannotDivide.

    With `leaves_unread` the weights that would be copied wait for their turn.
    """
    model, boundary = _build(checkpoint, stage, dtype, device)
    blocks = None if config.injection_policy is None else policy_blocks(model, config.injection_policy)
    sharding: Sharding | None = None
    if rank_of_size is not None:
        unit = max(inner_unit(checkpoint, it) for it in _quantizations(config))
        sharding = plan_sharding(model, *rank_of_size, blocks, unit, None if stage is None else len(stage.layers))
        check_loadable(checkpoint, _build(checkpoint, stage, dtype, torch.device("meta"))[0], dtype)
        shrink(model, sharding)
    parts = None if sharding is None else sharding.parts
    model = load_weights(checkpoint, model, dtype, device, parts, leaves_unread=leaves_unread)
    if sharding is not None:
        leave_to_first_rank(model, sharding)
    if stage is not None:
        leave_anchor(model, dtype, device)
    return LoadedPart(model, sharding, boundary)


def _quantizations(config: EngineConfig) -> set[QuantizationConfig | None]:
    return {run.config for run in config.layer_quantization} or {config.quantization}


def _build(
    checkpoint: Checkpoint, stage: StagePlan | None, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, Boundary | None]:
    """The model on the meta device, cut down to what `stage` holds where there is one."""
    model = build_on_meta(checkpoint, load_config(checkpoint), dtype)
    return model, None if stage is None else cut(model, stage.parts, stage.layers, dtype, device)
