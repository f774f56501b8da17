"""What building a checkpoint's model without its weights tells, asked of processes of their own: no torch here."""

import msgspec

from distllm.engine.checkpoint import Checkpoint, CheckpointError
from distllm.engine.child_program import Answer, Refusal, ask
from distllm.engine.config import EngineConfig
from distllm.engine.config_check import check_config

_TIMEOUT_S = 120


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint is to be served. `headers` are name, type, shape and file of tensors that are not here yet.

    They are None where all of the checkpoint's files are.
    """

    config: EngineConfig
    headers: list[tuple[str, str, tuple[int, ...], str]] | None

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: EngineConfig) -> "Examination":
        if all(shard.is_file() for shard in checkpoint.shards):
            return cls(config=config, headers=None)
        tensors = checkpoint.tensors.values()
        headers = [(tensor.name, tensor.dtype, tensor.shape, tensor.shard.name) for tensor in tensors]
        return cls(config=config, headers=headers)


class Architecture(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What can be served, in figures. `kv_elements_per_token` counts keys and values of all layers.

    `kv_heads_per_token` counts the heads of all layers, each with keys and values.
    """

    kv_elements_per_token: int
    kv_heads_per_token: int
    vocab_size: int
    hidden_size: int


class KernelRow(msgspec.Struct, frozen=True):
    """`count` modules whose names differ by their numbers alone. `reason` is empty where nothing is faster."""

    modules: str
    count: int
    kind: str
    runs_on: str
    reason: str


class KernelReport(msgspec.Struct, frozen=True, tag=True):
    """Rows in the order in which their first module comes in the model."""

    rows: list[KernelRow]


def examine_architecture(checkpoint: Checkpoint, config: EngineConfig) -> Architecture:
    """What `distllm.engine.architecture` finds. Raises CheckpointError for what serving would refuse."""
    return _ask(checkpoint, "distllm.engine.architecture", Examination.of(checkpoint, config), Architecture)


def examine_kernels(checkpoint: Checkpoint, config: EngineConfig) -> list[KernelRow]:
    """What `distllm.engine.kernel_report` finds. Raises CheckpointError."""
    return _ask(checkpoint, "distllm.engine.kernel_report", Examination.of(checkpoint, config), KernelReport).rows


def _ask(checkpoint: Checkpoint, module: str, question: Examination, kind: type[Answer]) -> Answer:
    check_config(checkpoint)
    found = ask(module, question, kind, shows_progress=False, timeout_s=_TIMEOUT_S)
    if isinstance(found, Refusal):
        raise CheckpointError(found.reason)
    return found
