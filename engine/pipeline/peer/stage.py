"""A stage that is loaded: what computes its layers, and a log of what it has handed on."""

import time
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from distllm.engine.batch import StepTensors, build_step_tensors
from distllm.engine.config import EngineConfig
from distllm.engine.device import measure_free_bytes
from distllm.engine.interface import ChunkOutput, ExecutorInfo, StepInput, StepOutput
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.peer.activation_log import ActivationLog
from distllm.engine.pipeline.ranks.stage_process import StageProcess
from distllm.engine.pipeline.stage_model.stage_runner import StageRunner
from distllm.engine.pool_size import size_pool
from distllm.engine.progress import OnLost, Progress
from distllm.engine.served_model import ServedModel, prepare_model


class StageComputer(Protocol):
    """Computes a stage's layers: in this process, or in others."""

    def allocate(self, num_blocks: int) -> None:
        """Have a KV pool of so many blocks, with nothing in it."""

    def compute(self, step: StepInput, batch: StepTensors, activations: Tensor | None) -> Tensor | None:
        """Activations behind the layers, in host memory; None behind the last. `batch` has `step`'s tokens."""

    def sample(self, step: StepInput, activations: Tensor | None) -> StepOutput:
        """What the last stage makes of a step."""

    def close(self) -> None:
        """Give the memory back."""


class Stage:
    """Not thread-safe. Get one with `load_stage`, and close it."""

    def __init__(self, layers: LayerRange, computer: StageComputer, info: ExecutorInfo) -> None:
        self.info = info
        self._layers = layers
        self._computer = computer
        self._log: ActivationLog | None = None
        self._num_blocks = 0

    def allocate(self, num_blocks: int) -> None:
        """Have a KV pool of so many blocks; one that has that size stays, with what is in it."""
        if num_blocks == self._num_blocks:
            return
        self._computer.allocate(num_blocks)
        self._num_blocks = num_blocks
        self._log = None

    def run(self, step: StepInput, activations: Tensor | None, *, is_rebuild: bool) -> Tensor | StepOutput:
        """Activations for the next stage, or what the step yields where this is the last one."""
        assert self._num_blocks, "a stage computes in an epoch alone"
        if self._layers.is_last and not is_rebuild:
            return self._computer.sample(step, activations)
        batch = build_step_tensors(step.chunks, (), step.block_copies)
        output = self._computer.compute(step, batch, activations)
        if output is None:
            return nothing_of(step)
        self._log_of(output).note(batch, output)
        return output

    def recall(self, step: StepInput) -> Tensor:
        """The activations that `run` yielded for the same tokens before."""
        assert self._log is not None, "a stage recalls what it has computed"
        return self._log.recall(build_step_tensors(step.chunks, ()))

    def close(self) -> None:
        """Give the memory back."""
        self._computer.close()

    def _log_of(self, output: Tensor) -> ActivationLog:
        if self._log is None:
            self._log = ActivationLog(self._num_blocks, output.shape[1], output.dtype)
        return self._log


def nothing_of(step: StepInput) -> StepOutput:
    """The output of a step that samples nothing."""
    return StepOutput(step.step_id, [ChunkOutput(chunk.sequence_id, None) for chunk in step.chunks])


class _LocalComputer:
    """A StageComputer in this process."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._runner: StageRunner | None = None

    def allocate(self, num_blocks: int) -> None:
        self._runner = StageRunner(self._served.stage_over(num_blocks))

    def compute(self, _: StepInput, batch: StepTensors, activations: Tensor | None) -> Tensor | None:
        assert self._runner is not None
        return self._runner.compute(batch, activations)

    def sample(self, step: StepInput, activations: Tensor | None) -> StepOutput:
        assert self._runner is not None
        return self._runner.sample(step, activations)

    def close(self) -> None:
        """Memory goes with the last reference."""


def load_stage(config: StageConfig, here: EngineConfig, on_progress: Progress, on_lost: OnLost) -> Stage:
    """Load a stage as `config` says, from and on what `here` says of this machine.

    `on_lost` is called in another thread where ranks share the stage and are lost.
    Raises CheckpointError, OutOfMemory or ValueError, each with one line for the operator.
    """
    engine = engine_config(config, here)
    layers = LayerRange(config.begin, config.end, config.num_layers)
    if engine.tensor_parallel_size != 1:
        process = StageProcess(engine, layers, on_progress, on_lost)
        return Stage(layers, process, process.info)
    started_s = time.monotonic()
    served = prepare_model(engine, on_progress, layers=layers)
    need = served.pool_need(engine)
    pool = served.pool_config(engine, need.block_bytes)
    num_blocks = size_pool(pool, need, measure_free_bytes(served.device))
    info = served.info(num_blocks, need.block_bytes, served.weight_bytes, time.monotonic() - started_s)
    return Stage(layers, _LocalComputer(served), info)


def engine_config(config: StageConfig, here: EngineConfig) -> EngineConfig:
    """How a stage is loaded from and on what `here` says of this machine."""
    return replace(
        here,
        dtype=config.dtype,
        kv_cache_dtype=config.kv_cache_dtype,
        quantization=config.quantization,
        layer_quantization=config.layer_quantization,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        numerics=config.numerics,
    )
