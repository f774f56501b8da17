"""Which layers stay in memory and which stream: pure arithmetic. Importable without torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from distllm.engine.byte_size import byte_size
from distllm.engine.config import EngineConfig
from distllm.engine.pool_size import OutOfMemory, PoolNeed

_USABLE_FRACTION = 0.9
"""Of the free memory: more than a pool takes that need not make do."""
_MAX_SLOTS = 3
_MIN_SLOTS = 2
_POOL_SHARE = 0.25
"""Of what layers and KV share, the part that the KV pool gets where its size was not given."""
_REMEDY = "lower --max-num-batched-tokens, --max-model-len or --kv-cache-memory, or give the process more memory"


@dataclass(frozen=True, slots=True)
class Residency:
    """`streamed` layers, in order, come through a ring of `num_slots` buffers as large as the largest of them."""

    streamed: tuple[int, ...]
    num_slots: int
    slot_bytes: int
    streamed_bytes: int
    resident_bytes: int

    @property
    def ring_bytes(self) -> int:
        return self.num_slots * self.slot_bytes


@dataclass(frozen=True, slots=True)
class Division:
    """What layers, ring and KV pool get."""

    residency: Residency
    kv_bytes: int


def divide_memory(
    config: EngineConfig, need: PoolNeed, layer_bytes: Sequence[int], other_bytes: int, free_bytes: int
) -> Division:
    """Divide what is free with all but the layers in memory: `other_bytes` of weights. Raises OutOfMemory.

    A pool whose size was not given gets room for one sequence at least and for a full batch at most: in between a
    quarter, or less where the ring needs it, or what `config.weights_bytes` leaves.
    """
    usable = max(0, int(free_bytes * _USABLE_FRACTION) - need.activation_bytes)
    if config.weights_bytes is None:
        beside_ring = usable - _MIN_SLOTS * max(layer_bytes)
        kv_bytes = _pool_bytes(config, need, min(int(usable * _POOL_SHARE), beside_ring))
        return Division(choose_residents(layer_bytes, usable - kv_bytes), kv_bytes)
    budget = config.weights_bytes - other_bytes
    residency = choose_residents(layer_bytes, budget, "raise --weights-memory")
    return Division(residency, _pool_bytes(config, need, usable - budget))


def _pool_bytes(config: EngineConfig, need: PoolNeed, share: int) -> int:
    if config.num_blocks is not None:
        return config.num_blocks * need.block_bytes
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    one_sequence = need.blocks_per_sequence * need.block_bytes
    return min(one_sequence * need.max_num_seqs, max(one_sequence, share))


def choose_residents(layer_bytes: Sequence[int], budget_bytes: int, remedy: str = _REMEDY) -> Residency:
    """Keep as many layers as the budget holds beside the ring. Raises OutOfMemory, with the remedy, without a ring.

    Resident layers lie evenly among the streamed ones, so that their time, too, is used for reading.
    """
    total = sum(layer_bytes)
    if total <= budget_bytes:
        return Residency((), 0, 0, 0, total)
    for num_slots in range(_MAX_SLOTS, _MIN_SLOTS - 1, -1):
        for num_residents in range(len(layer_bytes) - num_slots - 1, -1, -1):
            residency = _residency(layer_bytes, num_residents, num_slots)
            if residency.resident_bytes + residency.ring_bytes <= budget_bytes:
                return residency
    needed = _MIN_SLOTS * max(layer_bytes)
    raise OutOfMemory(
        f"layers stream through {byte_size(needed)} of buffers, and {byte_size(max(0, budget_bytes))} are left: "
        + remedy
    )


def _residency(layer_bytes: Sequence[int], num_residents: int, num_slots: int) -> Residency:
    num_layers = len(layer_bytes)
    residents = {(2 * number + 1) * num_layers // (2 * num_residents) for number in range(num_residents)}
    streamed = tuple(index for index in range(num_layers) if index not in residents)
    return Residency(
        streamed=streamed,
        num_slots=num_slots,
        slot_bytes=max(layer_bytes[index] for index in streamed),
        streamed_bytes=sum(layer_bytes[index] for index in streamed),
        resident_bytes=sum(layer_bytes[index] for index in residents),
    )
