"""What serving a checkpoint would take, told from its files before anything is loaded. Never imports torch."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from distllm.engine.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.context_length import resolve_length, supported_length
from distllm.engine.dtypes import DTYPE_BYTES, resolve_dtype
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.kv_shape import kv_elements_per_token
from distllm.engine.memory import measure_free_host_bytes
from distllm.engine.pool_size import FREE_FRACTION


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Figures of one checkpoint on one device. `num_blocks` is what fits beside the weights, at least 0."""

    path: Path
    model_type: str
    device: str
    dtype: str
    num_parameters: int
    weight_bytes: int
    kv_block_bytes: int
    free_bytes: int
    num_blocks: int
    max_model_len: int

    @property
    def fits(self) -> bool:
        """Whether the weights and one sequence of the longest length fit."""
        return self.max_requests(self.max_model_len) > 0

    @property
    def kv_token_bytes(self) -> int:
        return self.kv_block_bytes // BLOCK_SIZE

    def max_requests(self, context_length: int) -> int:
        """Most requests of `context_length` tokens (prompt and answer) whose KV fits at once."""
        return self.num_blocks // -(-context_length // BLOCK_SIZE)


def memory_plan(config: EngineConfig, free_bytes: int | None = None) -> MemoryPlan:
    """Plan for `config.model`; `free_bytes` None measures the device. Raises CheckpointError or ValueError."""
    checkpoint = open_checkpoint(Path(config.model))
    device = _device(config)
    dtype = resolve_dtype(config.dtype, checkpoint, device)
    text = checkpoint.text_config
    num_parameters = count_parameters(checkpoint)
    weight_bytes = num_parameters * DTYPE_BYTES[dtype]
    free = _measure_free_bytes(device) if free_bytes is None else free_bytes
    try:
        block_bytes = BLOCK_SIZE * kv_elements_per_token(text) * DTYPE_BYTES[dtype]
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.path}/config.json has no {error.args[0]}") from None
    return MemoryPlan(
        path=checkpoint.path,
        model_type=str(checkpoint.config.get("model_type", "unknown")),
        device=device,
        dtype=dtype,
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        kv_block_bytes=block_bytes,
        free_bytes=free,
        num_blocks=_affordable_blocks(config, free - weight_bytes, block_bytes),
        max_model_len=resolve_length(config.max_model_len, supported_length(text)),
    )


def count_parameters(checkpoint: Checkpoint) -> int:
    """Elements that will be in memory: a tied output head that is stored as well counts once."""
    is_tied = bool(checkpoint.text_config.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings")))
    return sum(
        tensor.num_elements
        for name, tensor in checkpoint.tensors.items()
        if not (is_tied and name in ("lm_head.weight", "embed_out.weight"))
    )


def _affordable_blocks(config: EngineConfig, left_bytes: int, block_bytes: int) -> int:
    if config.num_blocks is not None:
        return config.num_blocks
    budget = int(left_bytes * FREE_FRACTION) if config.kv_cache_bytes is None else config.kv_cache_bytes
    return max(0, budget) // block_bytes


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
