"""What serving a checkpoint would take, told from its files before anything is loaded. Never imports torch."""

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from distllm.engine.activation import activation_bytes
from distllm.engine.byte_size import byte_size
from distllm.engine.checkpoint import Checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.context_length import resolve_length, supported_length
from distllm.engine.dtypes import DTYPE_BYTES, resolve_dtype
from distllm.engine.examination import Architecture
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.memory import measure_free_host_bytes
from distllm.engine.offload.errors import check_offload
from distllm.engine.offload.forecast import OffloadForecast, forecast_offload
from distllm.engine.pool_size import OutOfMemory, PoolNeed, size_pool
from distllm.engine.quantization.family import quantization_name
from distllm.engine.quantization.footprint import count_parameters, tensor_bytes

_KV_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Figures of one checkpoint on one device. `num_blocks` is the pool that an engine would take, at least 0.

    `quantization` names how weights are quantized, None where they are not. `refusal` is what it would say instead
    of starting, None where it would start.
    """

    path: Path
    model_type: str
    device: str
    dtype: str
    quantization: str | None
    num_parameters: int
    weight_bytes: int
    kv_block_bytes: int
    free_bytes: int
    num_blocks: int
    max_num_seqs: int
    max_model_len: int
    offload: OffloadForecast | None
    refusal: str | None

    @property
    def kv_token_bytes(self) -> int:
        return self.kv_block_bytes // BLOCK_SIZE

    def max_requests(self, context_length: int) -> int:
        """Most requests of `context_length` tokens (prompt and answer) that run at once."""
        return min(self.max_num_seqs, self.num_blocks // -(-context_length // BLOCK_SIZE))


def memory_plan(
    checkpoint: Checkpoint, architecture: Architecture, config: EngineConfig, free_bytes: int | None = None
) -> MemoryPlan:
    """What `config` would make of a checkpoint; `free_bytes` None measures the device. Raises ValueError."""
    device = _device(config)
    dtype = resolve_dtype(config.dtype, checkpoint, device)
    num_parameters = count_parameters(checkpoint)
    sizes = tensor_bytes(checkpoint, config.quantization, DTYPE_BYTES[dtype])
    num_weight_bytes = sum(sizes.values())
    free = _measure_free_bytes(device) if free_bytes is None else free_bytes
    need = _pool_need(checkpoint, architecture, config, DTYPE_BYTES[dtype])
    check_offload(config, device)
    try:
        offload = forecast_offload(checkpoint, config, need, sizes, free)
        num_blocks, refusal = _choose_pool(config, need, num_weight_bytes, free, offload)
    except OutOfMemory as error:
        offload, num_blocks, refusal = None, 0, str(error)
    return MemoryPlan(
        path=checkpoint.path,
        model_type=str(checkpoint.config["model_type"]),
        device=device,
        dtype=dtype,
        num_parameters=num_parameters,
        weight_bytes=num_weight_bytes,
        quantization=quantization_name(checkpoint, config.quantization),
        kv_block_bytes=need.block_bytes,
        free_bytes=free,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_model_len=need.max_model_len,
        offload=offload,
        refusal=refusal,
    )


def _pool_need(
    checkpoint: Checkpoint, architecture: Architecture, config: EngineConfig, element_bytes: int
) -> PoolNeed:
    return PoolNeed(
        block_bytes=BLOCK_SIZE * _kv_token_bytes(architecture, config, element_bytes),
        max_model_len=resolve_length(config.max_model_len, supported_length(checkpoint.text_config)),
        max_num_seqs=config.max_num_seqs,
        activation_bytes=activation_bytes(
            config.max_num_batched_tokens, architecture.vocab_size, architecture.hidden_size
        ),
    )


def _kv_token_bytes(architecture: Architecture, config: EngineConfig, element_bytes: int) -> int:
    if config.kv_cache_dtype == "auto":
        return architecture.kv_elements_per_token * element_bytes
    return architecture.kv_elements_per_token + architecture.kv_heads_per_token * 2 * _KV_SCALE_BYTES


def _choose_pool(
    config: EngineConfig, need: PoolNeed, weight_bytes: int, free_bytes: int, offload: OffloadForecast | None
) -> tuple[int, str | None]:
    """As `_size_pool`, beside the weights, or beside those of them that stay."""
    if offload is not None and offload.division.residency.streamed:
        kv_bytes = offload.division.kv_bytes
        return _size_pool(replace(config, kv_cache_bytes=kv_bytes), need, kv_bytes)
    num_blocks, refusal = _size_pool(config, need, max(0, free_bytes - weight_bytes))
    if weight_bytes >= free_bytes:
        sizes = f"the weights alone take {byte_size(weight_bytes)}, and {byte_size(free_bytes)} are free"
        refusal = f"{sizes}: --offload disk serves what does not fit"
    return num_blocks, refusal


def _size_pool(config: EngineConfig, need: PoolNeed, free_bytes: int) -> tuple[int, str | None]:
    """The pool and no refusal, or what there is room for and the refusal."""
    try:
        return size_pool(config, need, free_bytes), None
    except OutOfMemory as error:
        refusal = str(error)
    one_block = replace(need, max_model_len=BLOCK_SIZE, max_num_seqs=need.blocks_per_sequence)
    try:
        return size_pool(config, one_block, free_bytes), refusal
    except OutOfMemory:
        return 0, refusal


def _device(config: EngineConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cpu" if _cuda_free_bytes() is None else "cuda"


def _measure_free_bytes(device: str) -> int:
    if device == "cpu":
        return measure_free_host_bytes()
    free = _cuda_free_bytes()
    if free is None:
        raise ValueError("--device cuda: nvidia-smi finds no device; use --device cpu")
    return free


def _cuda_free_bytes() -> int | None:
    """Free memory of the first CUDA device, as nvidia-smi tells; None where there is none."""
    command = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(answer.strip()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
