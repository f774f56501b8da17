"""How the ranks of a model come to have equally many KV blocks, though their parts and their memory may differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.group import RankGroup
from distllm.engine.distributed.step_frame import FrameSize
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.pool_size import OutOfMemory, PoolNeed, size_pool
from distllm.engine.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class AgreedPool:
    """The same on every rank. `block_bytes` and `weight_bytes` are those of all ranks together."""

    num_blocks: int
    block_bytes: int
    weight_bytes: int
    frame_size: FrameSize


def agree_on_pool(config: EngineConfig, served: ServedModel, group: RankGroup, free_bytes: int) -> AgreedPool:
    """Size the pool so that it fits every rank. Raises OutOfMemory, on all ranks alike.

    Ranks on the CPU of a host share its memory, so that one's pool is what they all need; on GPUs each has its own.
    """
    need = served.pool_need(config)
    memory = group.host if served.device.type == "cpu" else group.rank
    figures = [
        _Figures(*numbers)
        for numbers in group.gather_numbers([need.block_bytes, served.weight_bytes, free_bytes, memory])
    ]
    block_bytes = sum(figure.block_bytes for figure in figures)
    config = served.pool_config(config, block_bytes)
    memories = {figure.memory: [other for other in figures if other.memory == figure.memory] for figure in figures}
    pools = []
    for memory, sharers in memories.items():
        try:
            pools.append(_affordable(config, need, sharers, block_bytes))
        except OutOfMemory as error:
            place = f"host {memory}" if served.device.type == "cpu" else f"the device of rank {memory}"
            raise OutOfMemory(f"on {place}, {error}" if len(memories) > 1 else str(error)) from None
    return AgreedPool(
        num_blocks=min(pools),
        block_bytes=block_bytes,
        weight_bytes=sum(figure.weight_bytes for figure in figures),
        frame_size=_frame_size(config, served),
    )


def _frame_size(config: EngineConfig, served: ServedModel) -> FrameSize:
    """Of steps of the model or of a stage, which is rebuilt in no fewer tokens than a block has."""
    sharding, boundary = served.sharding, served.boundary
    assert sharding is not None
    yields_logits = boundary is None or boundary.layers.is_last
    entrance = None if boundary is None else boundary.entrance
    return FrameSize(
        max_tokens=max(config.max_num_batched_tokens, BLOCK_SIZE),
        max_sequences=config.max_num_seqs,
        max_blocks=-(-served.max_model_len // BLOCK_SIZE),
        vocab_sizes=tuple(len(part) if yields_logits else 0 for part in sharding.vocabularies),
        width=0 if entrance is None else entrance.width,
        dtype=served.dtype,
    )


@dataclass(frozen=True, slots=True)
class _Figures:
    """What a rank says of itself. `memory` is the number of that from which its part of the pool is taken."""

    block_bytes: int
    weight_bytes: int
    free_bytes: int
    memory: int


def _affordable(config: EngineConfig, need: PoolNeed, sharers: Sequence[_Figures], total_bytes: int) -> int:
    """Blocks that one memory affords for the parts of its ranks. A given size is that of all ranks together.

    `total_bytes` are those of a block on all ranks.
    """
    block_bytes = sum(rank.block_bytes for rank in sharers)
    given = config.kv_cache_bytes
    share = replace(config, kv_cache_bytes=None if given is None else given * block_bytes // total_bytes)
    whole = replace(need, block_bytes=block_bytes, activation_bytes=need.activation_bytes * len(sharers))
    return size_pool(share, whole, min(rank.free_bytes for rank in sharers))
