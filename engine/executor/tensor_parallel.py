"""Runs steps on several ranks of one host that share a model. This process is the first of them."""

import logging
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.config import DeviceName, EngineConfig
from distllm.engine.device import measure_free_bytes, resolve_device
from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.cores import bind, share_cores
from distllm.engine.distributed.deepspeed_group import DeepSpeedGroup, Membership, why_gathered
from distllm.engine.distributed.pool_agreement import agree_on_pool
from distllm.engine.distributed.rank_check import RankCheck
from distllm.engine.distributed.rank_processes import RankProcesses
from distllm.engine.distributed.step_frame import StepFrame
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.forward import ModelForward
from distllm.engine.interface import ExecutorInfo, StepInput, StepOutput
from distllm.engine.model_runner import ModelRunner
from distllm.engine.progress import OnLost, Progress
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.served_model import check_division, prepare_model

logger = logging.getLogger("distllm.engine")


class RanksDiffer(RuntimeError):
    """Two ranks computed different activations from the same tokens."""


@dataclass(frozen=True, slots=True)
class ShardedForward:
    """A Forward over all ranks: tells them the step, computes this rank's part and puts the logits together."""

    own: ModelForward
    frame: StepFrame
    ranks: RankProcesses
    arrivals: Arrivals
    check: RankCheck

    def __call__(self, batch: StepTensors) -> Tensor:
        return self.needed(replace(batch, num_candidates=batch.num_candidates[:0])).whole

    def needed(self, batch: StepTensors) -> NeededLogits:
        self.frame.write(batch)
        self.ranks.begin_step()
        own = self.own.needed(batch)
        digest = self.check.digest()
        with self.arrivals.waiting():
            digests = self.ranks.end_step()
        if any(other != digest for other in digests):
            raise RanksDiffer("the ranks computed different activations; the engine is started anew")
        others = [self.frame.read_logits(rank, batch) for rank in range(1, self.arrivals.size)]
        return NeededLogits.merge([own, *others], batch.num_candidates)


class TensorParallelExecutor:
    """An Executor whose `submit` returns after the step."""

    max_in_flight = 1

    def __init__(self, local: LocalExecutor, ranks: RankProcesses) -> None:
        self._local = local
        self._ranks = ranks

    @property
    def info(self) -> ExecutorInfo:
        return self._local.info

    @property
    def runner(self) -> ModelRunner:
        """Runs steps over all ranks."""
        return self._local.runner

    def submit(self, step: StepInput) -> "Future[StepOutput]":
        """Run the step on all ranks. What goes wrong is the future's exception."""
        return self._local.submit(step)

    def close(self) -> None:
        """End the other ranks and give the memory back."""
        self._ranks.close()
        self._local.close()


def start_tensor_parallel(config: EngineConfig, on_progress: Progress, on_lost: OnLost) -> TensorParallelExecutor:
    """Start the other ranks and load this one's part. Raises as build_executor does.

    `on_lost` is called in another thread when a rank has died, hangs, or cannot load its part.
    """
    started_s = time.monotonic()
    size = config.tensor_parallel_size
    assert size is not None
    device: DeviceName = "cuda" if resolve_device(config.device).type == "cuda" else "cpu"
    config = replace(config, device=device)
    check_division(config, size)
    ranks = RankProcesses(size, config.rank_timeout_s, on_lost)
    try:
        return _join(config, ranks, on_progress, started_s)
    except BaseException:
        ranks.close()
        raise


def _join(
    config: EngineConfig, ranks: RankProcesses, on_progress: Progress, started_s: float
) -> TensorParallelExecutor:
    """Load this rank's part while the others load theirs."""
    cores = share_cores(ranks.size)
    reason = why_gathered(config.device, ranks.size, ranks.size, sum(map(len, cores)))
    if reason is not None:
        logger.info("the ranks do not sum through shared memory: %s", reason)
    membership = Membership(
        rank=0,
        size=ranks.size,
        meeting_point=ranks.meeting_point,
        name=ranks.name,
        device_type=config.device,
        num_local=ranks.size,
        shares_memory=reason is None,
    )
    ranks.start(asdict(config), asdict(membership), cores)
    bind(cores[0])
    group = DeepSpeedGroup(membership, ranks.arrivals)
    served = prepare_model(config, on_progress, group)
    on_progress("sizing the KV cache", 1.0)
    pool = agree_on_pool(config, served, group, measure_free_bytes(served.device))
    own = served.forward_over(pool.num_blocks)
    frame = StepFrame(ranks.frame_descriptor, pool.frame_size)
    check = RankCheck(served.model, config.rank_check_steps)
    group.gather_numbers([0])  # all are ready for steps
    ranks.expect_progress()
    info = served.info(pool.num_blocks, pool.block_bytes, pool.weight_bytes, time.monotonic() - started_s)
    forward = ShardedForward(own, frame, ranks, ranks.arrivals, check)
    return TensorParallelExecutor(LocalExecutor(ModelRunner(forward), info), ranks)
