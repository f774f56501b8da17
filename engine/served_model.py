"""A checkpoint made ready to run: loaded, put on the kernels, checked. One rank's part of it, or the whole."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from distllm.engine.activation import activation_bytes
from distllm.engine.checkpoint import Checkpoint
from distllm.engine.compute import Compute, choose_compute
from distllm.engine.config import EngineConfig
from distllm.engine.context_length import resolve_length, supported_length
from distllm.engine.conversion.rank_checkpoint import RankCheckpoint, open_for_rank
from distllm.engine.device import resolve_device
from distllm.engine.distributed.group import RankGroup
from distllm.engine.distributed.parallel_modules import connect
from distllm.engine.distributed.sharding import INNER_UNIT, Sharding, plan_sharding
from distllm.engine.distributed.shrinking import shrink
from distllm.engine.distributed.user_policy import policy_blocks
from distllm.engine.dtypes import resolve_dtype
from distllm.engine.forward import ModelForward
from distllm.engine.injection.attention import PagedCache, attach
from distllm.engine.injection.injector import fuse_modules
from distllm.engine.injection.packing import leave_packed, pack_weights
from distllm.engine.injection.probe import DiscoveredLayer, discover_layers
from distllm.engine.injection.quantizing import Schemes, choose_schemes, quantize_weights
from distllm.engine.injection.rotary import freeze_rotary
from distllm.engine.interface import BLOCK_SIZE, ExecutorInfo
from distllm.engine.loading import build_on_meta, load_config, load_weights
from distllm.engine.memory import giving_back_freed_memory
from distllm.engine.offload.decoder_layers import find_decoder_layers
from distllm.engine.offload.offloader import Offloader
from distllm.engine.offload.start import Settled, open_lane, settle_layers
from distllm.engine.pool_size import PoolNeed
from distllm.engine.progress import Progress
from distllm.engine.quantization.config import GROUP_SIZES, QuantizationConfig
from distllm.engine.quantization.family import numerics_family
from distllm.engine.self_check import NUM_BLOCKS, check_forward, plain_logits
from distllm.engine.stage_log import StageLog

_KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model whose modules attend to a paged cache that it has yet to be given.

    `sharding` is None where it is whole. `weight_bytes` are those that this process holds, or brings in every step
    where layers are `offloaded`.
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

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def pool_need(self, config: EngineConfig) -> PoolNeed:
        """What this process's part of the KV pool takes."""
        return _pool_need(config, self.model, self.layers, self.max_model_len, self.kv_dtype)

    def pool_config(self, config: EngineConfig) -> EngineConfig:
        """`config` with the part of the memory that the pool got, where layers and pool had to share it."""
        if self.offloaded is None or self.offloaded.kv_bytes is None or config.num_blocks is not None:
            return config
        return replace(config, kv_cache_bytes=self.offloaded.kv_bytes)

    def forward_over(self, num_blocks: int, kv_dtype: torch.dtype | None = None) -> ModelForward:
        """The model with a cache of so many blocks, in place of one that it had; of another type if asked."""
        shapes = [layer.shape for layer in self.layers]
        cache = PagedCache(self.compute.attention, shapes, num_blocks, kv_dtype or self.kv_dtype)
        for layer, paged in zip(self.layers, cache.layers, strict=True):
            attach(layer.module, paged)
        return ModelForward(self.model, cache)

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
            numerics=self.compute.numerics if size == 1 else f"{self.compute.numerics}-tp{size}",
            weight_bytes=weight_bytes,
            kv_block_bytes=block_bytes,
            load_s=load_s,
            num_ranks=size,
            streamed_bytes=0 if self.offloaded is None else self.offloaded.streamed_bytes,
        )


def prepare_model(config: EngineConfig, on_progress: Progress, group: RankGroup | None = None) -> ServedModel:
    """Load `config.model`, or the part of this rank of `group`, and put the kernels under it.

    Raises CheckpointError or ValueError, each with one line for the operator.
    """
    device = resolve_device(config.device, 0 if group is None else group.rank)
    checkpoint = open_for_rank(Path(config.model), *((0, 1) if group is None else (group.rank, group.size)))
    dtype: torch.dtype = getattr(torch, resolve_dtype(config.dtype, checkpoint, device.type))
    family = numerics_family(checkpoint, config)
    compute = choose_compute(config, device, dtype, family, group)
    on_progress("reading the checkpoint", 0.0)
    lane = open_lane(config, device, is_stored_quantized=checkpoint.quantization is not None)
    host = device if lane is None else torch.device("cpu")
    stages = StageLog(*(0, 1) if group is None else (group.rank, group.size))
    rank_of_size = None if group is None else (group.rank, group.size)
    model, sharding = load_part(checkpoint, config, dtype, host, rank_of_size)
    stages.loaded(model, sharding)
    layers = discover_layers(model)
    max_model_len = resolve_length(config.max_model_len, supported_length(checkpoint.text_config))
    freeze_rotary(model, max_model_len)
    offloader = None if lane is None else Offloader(find_decoder_layers(model, [it.module for it in layers]), lane)
    schemes = {} if config.quantization is None else choose_schemes(model, config.quantization)
    with nullcontext() if offloader is None else giving_back_freed_memory():
        weight_bytes = _inject_weights(model, compute, schemes, offloader, device, on_progress)
    stages.quantized(model, schemes)
    kv_dtype = _KV_DTYPES.get(config.kv_cache_dtype, dtype)
    need = _pool_need(config, model, layers, max_model_len, kv_dtype)
    offloaded = None if offloader is None else settle_layers(offloader, config, need, weight_bytes, device)
    if sharding is not None and group is not None:
        connect(model, sharding, group)
    expected = plain_logits(model)
    if compute.kernels is not None:
        layers = fuse_modules(model, layers, compute.kernels)
    stages.injected(model)
    served = ServedModel(
        model, layers, compute, dtype, kv_dtype, device, max_model_len, weight_bytes, sharding, offloaded
    )
    check_forward(served.forward_over(NUM_BLOCKS, dtype), expected)
    stages.checked()
    return served


def check_division(config: EngineConfig, size: int) -> None:
    """Raises CheckpointError or CannotDivide where `size` ranks cannot share the model. Reads no weights."""
    checkpoint = open_for_rank(Path(config.model), 0, size)
    model = build_on_meta(checkpoint, load_config(checkpoint), torch.bfloat16)
    blocks = None if config.injection_policy is None else policy_blocks(model, config.injection_policy)
    plan_sharding(model, 0, size, blocks)


def _pool_need(
    config: EngineConfig,
    model: PreTrainedModel,
    layers: list[DiscoveredLayer],
    max_model_len: int,
    kv_dtype: torch.dtype,
) -> PoolNeed:
    text = model.config.get_text_config()
    return PoolNeed(
        block_bytes=sum(layer.shape.num_bytes(BLOCK_SIZE, kv_dtype) for layer in layers),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        activation_bytes=activation_bytes(config.max_num_batched_tokens, text.vocab_size, text.hidden_size),
    )


def load_part(
    checkpoint: Checkpoint,
    config: EngineConfig,
    dtype: torch.dtype,
    device: torch.device,
    rank_of_size: tuple[int, int] | None,
) -> tuple[PreTrainedModel, Sharding | None]:
    """The whole model, or what one rank of several holds. Raises CheckpointError or CannotDivide."""
    model = build_on_meta(checkpoint, load_config(checkpoint), dtype)
    blocks = None if config.injection_policy is None else policy_blocks(model, config.injection_policy)
    if rank_of_size is None:
        return load_weights(checkpoint, model, dtype, device), None
    unit = _inner_unit(checkpoint, config.quantization)
    sharding = plan_sharding(model, *rank_of_size, blocks, unit)
    shrink(model, sharding)
    return load_weights(checkpoint, model, dtype, device, sharding.parts), sharding


def _inner_unit(checkpoint: Checkpoint, quantization: QuantizationConfig | None) -> int:
    """Features of an MLP that stay on one rank: whole groups of quantized weights, where these are known.

    A checkpoint that was divided before keeps its division.
    """
    if isinstance(checkpoint, RankCheckpoint):
        return INNER_UNIT
    if checkpoint.quantization is not None:
        return max(GROUP_SIZES)
    return max(INNER_UNIT, (quantization and quantization.group_size) or INNER_UNIT)


def _inject_weights(
    model: PreTrainedModel,
    compute: Compute,
    schemes: Schemes,
    offloader: Offloader | None,
    device: torch.device,
    on_progress: Progress,
) -> int:
    """Quantize the weights that `schemes` names, pack them where there are kernels, take layers out of memory.

    Returns the bytes that all take.
    """
    if compute.kernels is None:
        moved_bytes = quantize_weights(model, schemes)
        if offloader is not None:
            moved_bytes += offloader.take_parameters(model, device)
    else:
        torch.set_num_threads(1)  # torch would split rows over threads where our kernels do not
        on_packed = leave_packed if offloader is None else offloader.take_packed
        report = partial(on_progress, "packing the weights")
        moved_bytes = pack_weights(model, compute.kernels, schemes, report, on_packed)
    return moved_bytes + sum(int(parameter.nbytes) for parameter in model.parameters())
