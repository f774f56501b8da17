"""What a rank of a stage does that is not the first: it computes its part of all that the first one computes."""

from typing import assert_never

from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.group import RankGroup
from distllm.engine.distributed.shared_memory_link import SharedMemoryLink
from distllm.engine.distributed.step_exchange import RankResult
from distllm.engine.pipeline.measuring.single_layer import SingleLayer
from distllm.engine.pipeline.ranks.orders import DONE, Allocate, ComputeStep, RunHead, RunLayer, decode_order
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.served_model import ServedModel


class FollowingRank:
    """One process's part of a stage, and its `link` to the first rank."""

    def __init__(self, served: ServedModel, group: RankGroup, arrivals: Arrivals, link: SharedMemoryLink) -> None:
        self._served = served
        self._group = group
        self._arrivals = arrivals
        self._link = link
        self._forward: StageForward | None = None
        self._single: SingleLayer | None = None

    def follow(self) -> None:
        """Do as the first rank says. Returns by EOFError or ConnectionError, once that has gone."""
        while True:
            order = decode_order(self._link.hear())
            match order:
                case ComputeStep():
                    self._compute()
                case Allocate(num_blocks=num_blocks):
                    self._forward = self._served.stage_over(num_blocks)
                    self._group.gather_numbers([0])
                case RunLayer(num_rows=num_rows):
                    self._single_layer().run_layer(num_rows)
                case RunHead(num_rows=num_rows):
                    self._single_layer().run_head(num_rows)
                    with self._arrivals.waiting():
                        self._link.say(DONE)
                case _:
                    assert_never(order)

    def _compute(self) -> None:
        assert self._forward is not None
        output = self._forward.compute(*self._link.read_step())
        with self._arrivals.waiting():
            if isinstance(output, NeededLogits):
                self._link.send_result(RankResult(DONE, output))
            else:
                self._link.say(DONE)  # the first rank has the same activations

    def _single_layer(self) -> SingleLayer:
        if self._single is None:
            self._single = SingleLayer(self._served)
        return self._single
