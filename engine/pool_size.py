"""How many KV blocks a device affords: pure arithmetic on measured figures. Importable without torch."""

from dataclasses import dataclass

from distllm.engine.byte_size import byte_size
from distllm.engine.config import EngineConfig
from distllm.engine.interface import BLOCK_SIZE

FREE_FRACTION = 0.8
"""Part of the free memory that the pool may take when its size was not given."""


class OutOfMemory(Exception):
    """Not even one sequence of the longest length fits; the message names the flags to change."""


@dataclass(frozen=True, slots=True)
class PoolNeed:
    """What a pool must hold. `activation_bytes` stay free for a step's intermediate results."""

    block_bytes: int
    max_model_len: int
    max_num_seqs: int
    activation_bytes: int = 0

    @property
    def blocks_per_sequence(self) -> int:
        return -(-self.max_model_len // BLOCK_SIZE)


def size_pool(config: EngineConfig, need: PoolNeed, free_bytes: int) -> int:
    """Blocks of the pool: as many as fit, at most as many as a full batch can use. Raises OutOfMemory."""
    if config.num_blocks is not None:
        affordable, origin = config.num_blocks, f"{config.num_blocks} blocks were given"
    elif config.kv_cache_bytes is not None:
        affordable = config.kv_cache_bytes // need.block_bytes
        origin = f"--kv-cache-memory gives {byte_size(config.kv_cache_bytes)}"
    else:
        budget = int(free_bytes * FREE_FRACTION) - need.activation_bytes
        affordable = max(0, budget) // need.block_bytes
        origin = f"{byte_size(free_bytes)} are free"
    if affordable < need.blocks_per_sequence:
        raise OutOfMemory(_refusal(need, affordable, origin))
    if config.num_blocks is not None:
        return affordable
    num_blocks = min(affordable, need.blocks_per_sequence * need.max_num_seqs)
    if num_blocks * need.block_bytes > free_bytes:
        raise OutOfMemory(
            f"{origin} for the KV cache, but only {byte_size(free_bytes)} are free beside the weights: lower it"
        )
    return num_blocks


def _refusal(need: PoolNeed, affordable: int, origin: str) -> str:
    needed = need.blocks_per_sequence * need.block_bytes
    remedy = "lower --max-model-len or raise --kv-cache-memory"
    if affordable > 0:
        remedy = f"lower --max-model-len to {affordable * BLOCK_SIZE} or raise --kv-cache-memory"
    return (
        f"the KV cache of one sequence of {need.max_model_len} tokens takes {byte_size(needed)}, but {origin}, "
        f"enough for {affordable * BLOCK_SIZE} tokens: {remedy}"
    )
