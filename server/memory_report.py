"""`distllm plan`: prints what serving a checkpoint would take, before anything is loaded."""

import sys

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.hub import ModelNotFound
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.plan import MemoryPlan, memory_plan
from distllm.server.config import InvalidSettings, Settings
from distllm.server.launch import find_checkpoint, start_message

_CONTEXT_LENGTHS = (512, 2048, 8192, 32768, 131072)


def print_plan(settings: Settings, context_length: int | None) -> int:
    """Print the plan. Returns the exit status: 0 if the model can be served so, 1 if not."""
    if context_length is not None and context_length < 1:
        raise InvalidSettings(f"--context must be at least 1, not {context_length}")
    try:
        plan = memory_plan(start_message(settings, find_checkpoint(settings)).engine)
    except (ModelNotFound, CheckpointError, ValueError) as error:
        sys.stderr.write(f"distllm: {error}\n")
        return 1
    sys.stdout.write("\n".join(report(plan, context_length)) + "\n")
    return 0 if plan.fits else 1


def report(plan: MemoryPlan, context_length: int | None) -> list[str]:
    """The plan in lines. `context_length` None counts requests at a few usual lengths."""
    pool_bytes = plan.num_blocks * plan.kv_block_bytes
    return [
        f"{plan.path}: {plan.model_type}, {plan.num_parameters / 1e6:,.1f} M parameters",
        f"  weights    {_gib(plan.weight_bytes)} in {plan.dtype} on {plan.device}, of {_gib(plan.free_bytes)} free",
        f"  KV cache   {_gib(pool_bytes)}: {plan.num_blocks:,} blocks of {BLOCK_SIZE} tokens, "
        f"{plan.kv_token_bytes:,} bytes a token",
        f"  context    {plan.max_model_len:,} tokens a request at most",
        *(_requests_line(plan, length) for length in _lengths(plan, context_length)),
        _verdict(plan),
    ]


def _lengths(plan: MemoryPlan, context_length: int | None) -> list[int]:
    if context_length is not None:
        return [context_length]
    shorter = [length for length in _CONTEXT_LENGTHS if length < plan.max_model_len]
    return [*shorter, plan.max_model_len]


def _requests_line(plan: MemoryPlan, length: int) -> str:
    if length > plan.max_model_len:
        return f"  requests   none at {length:,} tokens: longer than the context"
    return f"  requests   {plan.max_requests(length):,} at once at {length:,} tokens each"


def _verdict(plan: MemoryPlan) -> str:
    if plan.fits:
        return "fits: start it with `distllm serve`"
    if plan.weight_bytes >= plan.free_bytes:
        return "does not fit: the weights alone are larger than the free memory"
    affordable = plan.num_blocks * BLOCK_SIZE
    return f"does not fit: lower --max-model-len to {affordable} or raise --kv-cache-memory"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
