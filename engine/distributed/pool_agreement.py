"""How the ranks of a model come to have equally many KV blocks, though their parts and their memory may differ."""

from dataclasses import dataclass, replace

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.group import RankGroup
from distllm.engine.distributed.step_frame import FrameSize
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.pool_size import OutOfMemory, size_pool
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

    Ranks on a CPU share the host's memory, so that one's pool is what all need; on GPUs each has its own.
    """
    need = served.pool_need(config)
    figures = group.gather_numbers([need.block_bytes, served.weight_bytes, free_bytes])
    block_bytes = sum(figure[0] for figure in figures)
    config = served.pool_config(config, block_bytes)
    if served.device.type == "cpu":
        whole = replace(need, block_bytes=block_bytes, activation_bytes=need.activation_bytes * group.size)
        num_blocks = size_pool(config, whole, min(figure[2] for figure in figures))
    else:
        num_blocks = _smallest_pool(config, served, figures)
    assert served.sharding is not None
    return AgreedPool(
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        weight_bytes=sum(figure[1] for figure in figures),
        frame_size=FrameSize(
            max_tokens=config.max_num_batched_tokens,
            max_sequences=config.max_num_seqs,
            max_blocks=-(-served.max_model_len // BLOCK_SIZE),
            vocab_sizes=tuple(len(part) for part in served.sharding.vocabularies),
        ),
    )


def _smallest_pool(config: EngineConfig, served: ServedModel, figures: list[list[int]]) -> int:
    """What every rank's own device affords. A given size of the pool is that of all ranks together."""
    total_bytes = sum(figure[0] for figure in figures)
    pools = []
    for rank, (block_bytes, _, free_bytes) in enumerate(figures):
        given = config.kv_cache_bytes
        share = replace(config, kv_cache_bytes=None if given is None else given * block_bytes // total_bytes)
        try:
            pools.append(size_pool(share, replace(served.pool_need(config), block_bytes=block_bytes), free_bytes))
        except OutOfMemory as error:
            raise OutOfMemory(f"on the device of rank {rank}, {error}") from None
    return min(pools)
