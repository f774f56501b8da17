"""Runs steps on several ranks that share a model, wherever they are. This process is the first of them."""

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace

from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.config import DeviceName, EngineConfig
from distllm.engine.device import measure_free_bytes, resolve_device
from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.cores import bind
from distllm.engine.distributed.deepspeed_group import DeepSpeedGroup, why_gathered
from distllm.engine.distributed.placement import Placement
from distllm.engine.distributed.placing import place_ranks
from distllm.engine.distributed.pool_agreement import agree_on_pool
from distllm.engine.distributed.rank_check import RankCheck
from distllm.engine.distributed.rank_watch import RankWatch
from distllm.engine.distributed.step_exchange import StepExchange
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
    exchange: StepExchange
    watch: RankWatch
    arrivals: Arrivals
    check: RankCheck

    def __call__(self, batch: StepTensors) -> Tensor:
        return self.needed(replace(batch, num_candidates=batch.num_candidates[:0])).whole

    def needed(self, batch: StepTensors) -> NeededLogits:
        with self.watch.naming_the_lost():
            self.exchange.send_step(batch)
            own = self.own.needed(batch)
            digest = self.check.digest()
            with self.arrivals.waiting():
                others = self.exchange.receive_results(batch)
        if any(other.digest != digest for other in others):
            raise RanksDiffer("the ranks computed different activations; the engine is started anew")
        return NeededLogits.merge([own, *(other.logits for other in others)], batch.num_candidates)


class TensorParallelExecutor:
    """An Executor whose `submit` returns after the step."""

    max_in_flight = 1

    def __init__(self, local: LocalExecutor, placement: Placement, watch: RankWatch) -> None:
        self._local = local
        self._placement = placement
        self._watch = watch

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
        self._watch.close()
        self._placement.close()
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
    placement = place_ranks(config, size, on_progress)
    watch = RankWatch(placement, config.rank_timeout_s, on_lost)
    try:
        return _join(config, placement, watch, on_progress, started_s)
    except BaseException:
        watch.close()
        placement.close()
        raise


def _join(
    config: EngineConfig, placement: Placement, watch: RankWatch, on_progress: Progress, started_s: float
) -> TensorParallelExecutor:
    """Load this rank's part while the others load theirs."""
    membership = placement.membership
    reason = why_gathered(config.device, membership.size, membership.num_local, placement.num_cores)
    if reason is not None:
        logger.info("the ranks do not sum through shared memory: %s", reason)
    membership = replace(membership, device_type=config.device, shares_memory=reason is None)
    placement.start(replace(config, launched=None), membership)
    watch.start()
    bind(placement.cores)
    group = DeepSpeedGroup(membership, placement.arrivals)
    served = prepare_model(config, on_progress, group)
    on_progress("sizing the KV cache", 1.0)
    pool = agree_on_pool(config, served, group, measure_free_bytes(served.device))
    own = served.forward_over(pool.num_blocks)
    exchange = placement.open_exchange(pool.frame_size)
    check = RankCheck(served.model, config.rank_check_steps)
    group.gather_numbers([0])  # all are ready for steps
    watch.expect_progress()
    info = served.info(pool.num_blocks, pool.block_bytes, pool.weight_bytes, time.monotonic() - started_s)
    forward = ShardedForward(own, exchange, watch, placement.arrivals, check)
    return TensorParallelExecutor(LocalExecutor(ModelRunner(forward), info), placement, watch)
