"""What to say when memory does not suffice: the quantizations, numbers of ranks and contexts that would fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from distllm.engine.byte_size import byte_size
from distllm.engine.checkpoint import Checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.examination import Architecture
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.plan import MemoryPlan, memory_plan
from distllm.engine.quantization.config import QuantizationConfig

_STEP_TOKENS = 64
"""Contexts are advised in multiples of this."""


class OutOfMemory(MemoryError):
    """A model does not fit; the message says in one line what would."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The memory that a model may take: `free_bytes` of each of `count` devices. One CPU is one device."""

    count: int
    free_bytes: int


def refusal(
    checkpoint: Checkpoint, architecture: Architecture, config: EngineConfig, devices: Devices
) -> str | None:
    """Why `config` does not fit and what would, in one line; None where it fits. Raises ValueError."""
    plan = _plan(checkpoint, architecture, config, devices)
    if plan.refusal is None:
        return None
    remedies = [
        *_by_quantization(checkpoint, architecture, config, devices),
        *_by_ranks(checkpoint, architecture, config, devices),
        *_by_context(plan),
    ]
    weights = f"{byte_size(plan.weight_bytes)} of weights and {plan.max_model_len} tokens of context"
    needed = f"{weights} do not fit into the {byte_size(devices.free_bytes)} that are free"
    if not remedies:
        return f"{needed}, nor does any quantization, number of ranks or context here: give it a larger machine"
    return f"{needed}; what would fit: {'; or '.join(remedies)}"


def _by_quantization(
    checkpoint: Checkpoint, architecture: Architecture, config: EngineConfig, devices: Devices
) -> Iterator[str]:
    """INT8 and INT4, unless the weights are as small already; with a shorter context where they need one."""
    as_asked = _context(_plan(checkpoint, architecture, config, devices))
    for name, bits in (("int8", 8), ("int4", 4)):
        is_smaller = config.quantization is None or config.quantization.bits > bits
        if checkpoint.quantization is not None or not is_smaller:
            continue
        changed = replace(config, quantization=QuantizationConfig.named(name))
        plan = _plan(checkpoint, architecture, changed, devices)
        if plan.refusal is None:
            yield f"quantization_config={{'bits': {bits}}}"
        elif (tokens := _context(plan)) > as_asked:
            yield f"quantization_config={{'bits': {bits}}} with max_out_tokens={tokens}"


def _by_ranks(
    checkpoint: Checkpoint, architecture: Architecture, config: EngineConfig, devices: Devices
) -> Iterator[str]:
    """The fewest ranks that fit, where there is a device for each: ranks of one CPU share its memory."""
    num_ranks = config.tensor_parallel_size or 1
    for size in _sizes(devices.count):
        changed = replace(config, tensor_parallel_size=size)
        if size > num_ranks and _plan(checkpoint, architecture, changed, devices).refusal is None:
            yield f"tensor_parallel_size={size}"
            return


def _by_context(plan: MemoryPlan) -> Iterator[str]:
    tokens = _context(plan)
    if 0 < tokens < plan.max_model_len:
        yield f"max_out_tokens={tokens}"


def _context(plan: MemoryPlan) -> int:
    return plan.num_blocks * BLOCK_SIZE // _STEP_TOKENS * _STEP_TOKENS


def _sizes(count: int) -> Sequence[int]:
    return [size for size in (2, 4, 8, 16) if size <= count]


def _plan(checkpoint: Checkpoint, architecture: Architecture, config: EngineConfig, devices: Devices) -> MemoryPlan:
    """Of one device's memory times the ranks that have a device of their own."""
    num_devices = min(config.tensor_parallel_size or 1, devices.count)
    return memory_plan(checkpoint, architecture, config, devices.free_bytes * num_devices)
