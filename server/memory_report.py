"""`distllm plan`: prints what serving a checkpoint would take, before anything is loaded."""

import shlex
import sys
from collections.abc import Sequence

from distllm.engine.byte_size import byte_size
from distllm.engine.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from distllm.engine.embedded import checkpoint_path
from distllm.engine.examination import KernelRow, examine_architecture, examine_kernels
from distllm.engine.hub import ModelNotFound, inspect
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.offload.forecast import OffloadForecast
from distllm.engine.plan import MemoryPlan, memory_plan
from distllm.server.commands.setting_flags import flags_of
from distllm.server.config import InvalidSettings, Settings
from distllm.server.launch import start_message

_CONTEXT_LENGTHS = (512, 2048, 8192, 32768, 131072)


def print_plan(settings: Settings, context_length: int | None, with_kernels: bool = False) -> int:
    """Print the plan, and what runs each module if asked for. Returns the exit status: 0 if it can be served."""
    if context_length is not None and context_length < 1:
        raise InvalidSettings(f"--context must be at least 1, not {context_length}")
    try:
        checkpoint = _inspect(settings)
        config = start_message(settings, checkpoint.path).engine
        plan = memory_plan(checkpoint, examine_architecture(checkpoint, config), config)
        rows = examine_kernels(checkpoint, config) if with_kernels else []
    except (ModelNotFound, CheckpointError, ValueError) as error:
        sys.stderr.write(f"distllm: {error}\n")
        return 1
    if with_kernels:
        sys.stdout.write("\n".join(_kernel_lines(rows)) + "\n")
    verdict = f"does not fit: {plan.refusal}" if plan.refusal else f"fits: start it with `{_command(settings)}`"
    sys.stdout.write("\n".join([*report(plan, context_length), verdict]) + "\n")
    return 1 if plan.refusal else 0


def _kernel_lines(rows: Sequence[KernelRow]) -> list[str]:
    """A table: modules, their class, what runs them, and why not something faster."""
    head = ("module", "class", "runs on", "why not faster")
    cells = [
        (f"{row.modules} x{row.count}" if row.count > 1 else row.modules, row.kind, row.runs_on, row.reason)
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in [head, *cells]]


def _inspect(settings: Settings) -> Checkpoint:
    """Raises ModelNotFound or CheckpointError."""
    if settings.model.model is None:
        return open_checkpoint(checkpoint_path())
    return inspect(settings.model.model, settings.model.revision)


def _command(settings: Settings) -> str:
    """How to serve what was planned, every setting that is not its default said again."""
    sections = (settings.model, settings.scheduler, settings.engine)
    return shlex.join(["distllm", "serve", *(word for section in sections for word in flags_of(section))])


def report(plan: MemoryPlan, context_length: int | None) -> list[str]:
    """The figures in lines. `context_length` None counts requests at a few usual lengths."""
    pool_bytes = plan.num_blocks * plan.kv_block_bytes
    return [
        f"{plan.path}: {plan.model_type}, {plan.num_parameters / 1e6:,.1f} M parameters",
        f"  weights    {byte_size(plan.weight_bytes)} in {_weight_type(plan)} on {plan.device}, "
        f"of {byte_size(plan.free_bytes)} free",
        *([] if plan.offload is None else [_offload_line(plan.offload)]),
        f"  KV cache   {byte_size(pool_bytes)}: {plan.num_blocks:,} blocks of {BLOCK_SIZE} tokens, "
        f"{plan.kv_token_bytes:,} bytes a token",
        f"  context    {plan.max_model_len:,} tokens a request at most",
        *(_requests_line(plan, length) for length in _lengths(plan, context_length)),
    ]


def _offload_line(offload: OffloadForecast) -> str:
    residency = offload.division.residency
    num_streamed = len(residency.streamed)
    if not num_streamed:
        return f"  offload    all {offload.num_layers} layers stay in memory"
    line = (
        f"  offload    {offload.num_layers - num_streamed} of {offload.num_layers} layers stay in memory, "
        f"{num_streamed} stream from {offload.origin}: {byte_size(residency.streamed_bytes)} a step"
    )
    if offload.step_s is None or offload.bytes_per_s is None:
        return line
    return f"{line}, which takes {offload.step_s:.2g} s at least at {offload.bytes_per_s / 1e9:.2f} GB/s"


def _weight_type(plan: MemoryPlan) -> str:
    return plan.dtype if plan.quantization is None else f"{plan.quantization} and {plan.dtype}"


def _lengths(plan: MemoryPlan, context_length: int | None) -> list[int]:
    if context_length is not None:
        return [context_length]
    shorter = [length for length in _CONTEXT_LENGTHS if length < plan.max_model_len]
    return [*shorter, plan.max_model_len]


def _requests_line(plan: MemoryPlan, length: int) -> str:
    if length > plan.max_model_len:
        return f"  requests   none at {length:,} tokens: longer than the context"
    return f"  requests   {plan.max_requests(length):,} at once at {length:,} tokens each"
