"""A stage over ranks, as the first of them sees it: has all others do what it does, and puts results together."""

import logging
import time
from dataclasses import replace

from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.config import DeviceName, EngineConfig
from distllm.engine.device import measure_free_bytes, resolve_device
from distllm.engine.distributed.cores import bind
from distllm.engine.distributed.deepspeed_group import DeepSpeedGroup, why_gathered
from distllm.engine.distributed.group import RankGroup
from distllm.engine.distributed.one_host import OneHost
from distllm.engine.distributed.placing import spawn_ranks
from distllm.engine.distributed.pool_agreement import agree_on_pool
from distllm.engine.distributed.rank_watch import RankWatch
from distllm.engine.distributed.shared_memory_link import SharedMemoryExchange
from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.measuring.single_layer import SingleLayer
from distllm.engine.pipeline.placement.measuring import ComputeTimes, measure_layers
from distllm.engine.pipeline.ranks.orders import Allocate, AnyOrder, ComputeStep, RunHead, RunLayer, encode_order
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from distllm.engine.progress import OnLost, Progress
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.served_model import ServedModel, check_division, prepare_model

logger = logging.getLogger("distllm.engine")


class ShardedStage:
    """Not thread-safe. Get one with `start_sharded_stage`; an error may leave the ranks out of step."""

    def __init__(
        self,
        served: ServedModel,
        info: ExecutorInfo,
        placement: OneHost,
        exchange: SharedMemoryExchange,
        group: RankGroup,
        watch: RankWatch,
    ) -> None:
        assert served.boundary is not None
        self.info = info
        self.layers = served.boundary.layers
        self._served = served
        self._placement = placement
        self._exchange = exchange
        self._group = group
        self._watch = watch
        self._own: StageForward | None = None

    def allocate(self, num_blocks: int) -> None:
        """Have a KV pool of so many blocks on every rank."""
        with self._watch.naming_the_lost():
            self._tell(Allocate(num_blocks))
            self._own = self._served.stage_over(num_blocks)
            self._group.gather_numbers([0])

    def compute(self, batch: StepTensors, activations: Tensor | None) -> Tensor | NeededLogits:
        """As StageForward says. `activations` are in host memory."""
        assert self._own is not None
        self._own.check(batch, activations)
        with self._watch.naming_the_lost():
            self._exchange.send_step(batch, activations, encode_order(ComputeStep()))
            own = self._own.compute(batch, activations)
            with self._placement.arrivals.waiting():
                if isinstance(own, Tensor):
                    self._exchange.hear()
                    return own
                others = self._exchange.receive_results(batch)
        return NeededLogits.merge([own, *(other.logits for other in others)], batch.num_candidates)

    def time_layer(self, budget_s: float) -> ComputeTimes:
        """What the last layer and the head take, where the stage is no more than these."""
        with self._watch.naming_the_lost():
            self._tell(RunLayer(1))
            single = SingleLayer(self._served)
            single.run_layer(1)

            def run_layer(num_rows: int) -> None:
                self._tell(RunLayer(num_rows))
                single.run_layer(num_rows)

            def run_head(num_rows: int) -> None:
                self._tell(RunHead(num_rows))
                single.run_head(num_rows)
                with self._placement.arrivals.waiting():
                    self._exchange.hear()

            return measure_layers(run_layer, run_head, single.chunk_tokens, budget_s)

    def _tell(self, order: AnyOrder) -> None:
        self._exchange.tell(encode_order(order))


def start_sharded_stage(
    config: EngineConfig, layers: LayerRange, on_progress: Progress, on_lost: OnLost
) -> ShardedStage:
    """Start `config.tensor_parallel_size` - 1 more ranks, and load this one's part of `layers`.

    `on_lost` is called in another thread when a rank has died, hangs, or cannot load its part. All ranks end with
    this process. Raises as prepare_model does.
    """
    started_s = time.monotonic()
    size = config.tensor_parallel_size
    assert size is not None
    device: DeviceName = "cuda" if resolve_device(config.device).type == "cuda" else "cpu"
    config = replace(config, device=device)
    check_division(config, size, layers)
    placement = spawn_ranks(size)
    watch = RankWatch(placement, config.rank_timeout_s, on_lost)
    reason = why_gathered(device, size, size, placement.num_cores)
    if reason is not None:
        logger.info("the ranks do not sum through shared memory: %s", reason)
    membership = replace(placement.membership, device_type=device, shares_memory=reason is None)
    placement.start(config, membership, layers)
    watch.start()
    bind(placement.cores)
    group = DeepSpeedGroup(membership, placement.arrivals)
    served = prepare_model(config, on_progress, group, layers)
    pool = agree_on_pool(config, served, group, measure_free_bytes(served.device))
    exchange = placement.open_exchange(pool.frame_size)
    group.gather_numbers([0])  # all are ready for orders
    watch.expect_progress()
    info = served.info(pool.num_blocks, pool.block_bytes, pool.weight_bytes, time.monotonic() - started_s)
    return ShardedStage(served, info, placement, exchange, group, watch)
