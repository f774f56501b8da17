"""A stage that is loaded: its layers, and once it takes part in an epoch their KV."""

import time
from dataclasses import replace

import torch
from torch import Tensor

from distllm.engine.batch import StepTensors, build_step_tensors
from distllm.engine.config import EngineConfig
from distllm.engine.device import measure_free_bytes
from distllm.engine.interface import ChunkOutput, ExecutorInfo, StepInput, StepOutput
from distllm.engine.model_runner import ModelRunner
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.peer.activation_log import ActivationLog
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from distllm.engine.pool_size import size_pool
from distllm.engine.progress import Progress
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.served_model import ServedModel, prepare_model


class Stage:
    """Not thread-safe. Get one with `load_stage`."""

    def __init__(self, served: ServedModel, info: ExecutorInfo) -> None:
        self.info = info
        self._served = served
        self._forward: StageForward | None = None
        self._runner: ModelRunner | None = None
        self._tail: _TailForward | None = None
        self._log: ActivationLog | None = None
        self._num_blocks = 0

    def allocate(self, num_blocks: int) -> None:
        """Have a KV pool of so many blocks; one that has that size stays, with what is in it."""
        if num_blocks == self._num_blocks:
            return
        self._forward = self._served.stage_over(num_blocks)
        self._num_blocks = num_blocks
        self._log = None
        self._tail = _TailForward(self._forward)
        self._runner = ModelRunner(self._tail)

    @torch.inference_mode()
    def run(self, step: StepInput, activations: Tensor | None, *, is_rebuild: bool) -> Tensor | StepOutput:
        """Activations for the next stage, or what the step yields where this is the last one."""
        assert self._forward is not None, "a stage computes in an epoch alone"
        assert self._runner is not None
        assert self._tail is not None
        if self._forward.layers.is_last and not is_rebuild:
            self._tail.activations = activations
            return self._runner.run(step)
        batch = build_step_tensors(step.chunks, (), step.block_copies)
        output = self._forward.compute(batch, activations)
        if not isinstance(output, Tensor):
            return nothing_of(step)
        output = output.cpu()
        self._log_of(output).note(batch, output)
        return output

    def recall(self, step: StepInput) -> Tensor:
        """The activations that `run` yielded for the same tokens before."""
        assert self._log is not None, "a stage recalls what it has computed"
        return self._log.recall(build_step_tensors(step.chunks, ()))

    def _log_of(self, output: Tensor) -> ActivationLog:
        if self._log is None:
            self._log = ActivationLog(self._num_blocks, output.shape[1], output.dtype)
        return self._log


def nothing_of(step: StepInput) -> StepOutput:
    """The output of a step that samples nothing."""
    return StepOutput(step.step_id, [ChunkOutput(chunk.sequence_id, None) for chunk in step.chunks])


class _TailForward:
    """A Forward whose activations come from elsewhere."""

    def __init__(self, stage: StageForward) -> None:
        self._stage = stage
        self.activations: Tensor | None = None

    def __call__(self, batch: StepTensors) -> Tensor:
        return self.needed(replace(batch, num_candidates=batch.num_candidates[:0])).whole

    def needed(self, batch: StepTensors) -> NeededLogits:
        output = self._stage.compute(batch, self.activations)
        assert isinstance(output, NeededLogits)
        return output


def load_stage(config: StageConfig, here: EngineConfig, on_progress: Progress) -> Stage:
    """Load a stage as `config` says, from and on what `here` says of this machine.

    Raises CheckpointError, OutOfMemory or ValueError, each with one line for the operator.
    """
    started_s = time.monotonic()
    engine = engine_config(config, here)
    layers = LayerRange(config.begin, config.end, config.num_layers)
    served = prepare_model(engine, on_progress, layers=layers)
    need = served.pool_need(engine)
    pool = served.pool_config(engine, need.block_bytes)
    num_blocks = size_pool(pool, need, measure_free_bytes(served.device))
    load_s = time.monotonic() - started_s
    return Stage(served, served.info(num_blocks, need.block_bytes, served.weight_bytes, load_s))


def engine_config(config: StageConfig, here: EngineConfig) -> EngineConfig:
    """How a stage is loaded from and on what `here` says of this machine."""
    return replace(
        here,
        dtype=config.dtype,
        kv_cache_dtype=config.kv_cache_dtype,
        quantization=config.quantization,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        numerics=config.numerics,
    )
