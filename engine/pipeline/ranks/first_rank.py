"""The first rank's program: loads a stage with the other ranks, which it starts, and computes what its peer asks.

Started as `python -m distllm.engine.pipeline.ranks.first_rank DESCRIPTOR` by a peer, and ended with it.
"""

import logging
import os
import sys
import threading
from multiprocessing.connection import Connection
from typing import assert_never

from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.parent_death import end_with_parent, leave_signals_to_the_front_end
from distllm.engine.pipeline.ranks.messages import (
    AllocatePool,
    Done,
    Failed,
    LoadStage,
    Progress,
    RunStep,
    Sampled,
    StageLoaded,
    Timed,
    TimeLayer,
    ToFirstRank,
    ToPeer,
    decode_request,
    encode,
)
from distllm.engine.pipeline.ranks.sharded_stage import ShardedStage, start_sharded_stage
from distllm.engine.pipeline.stage_model.stage_runner import StageRunner

logger = logging.getLogger("distllm.engine")


class FirstRank:
    """One stage, and the connection to the peer whose it is."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answering = threading.Lock()

    def run(self) -> None:
        """Do what the peer asks for. Returns by EOFError or OSError, once that has gone."""
        request, _ = decode_request(self._connection.recv_bytes())
        assert isinstance(request, LoadStage), "a stage is loaded first"
        logging.basicConfig(level=request.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        stage = start_sharded_stage(request.config, request.layers, self._tell_progress, self.end)
        runner = StageRunner(stage)
        self._answer(StageLoaded(info=stage.info))
        while True:
            self._answer(*_do(stage, runner, *decode_request(self._connection.recv_bytes())))

    def end(self, reason: str) -> None:
        """Say why this stage is lost, and end this process, and so all other ranks."""
        logger.error("%s", reason)
        try:
            self._answer(Failed(reason=reason))
        finally:
            os._exit(1)  # a thread that waits for what is lost would wait for ever

    def _tell_progress(self, activity: str, done: float) -> None:
        self._answer(Progress(activity=activity, done=done))

    def _answer(self, answer: ToPeer, tensor: Tensor | None = None) -> None:
        with self._answering:
            self._connection.send_bytes(encode(answer, tensor))


def _do(
    stage: ShardedStage, runner: StageRunner, request: ToFirstRank, activations: Tensor | None
) -> tuple[ToPeer, Tensor | None]:
    match request:
        case RunStep(step=step, samples=True):
            return Sampled(output=runner.sample(step, activations)), None
        case RunStep(step=step):
            return Done(), runner.compute(build_step_tensors(step.chunks, (), step.block_copies), activations)
        case AllocatePool(num_blocks=num_blocks):
            stage.allocate(num_blocks)
            return Done(), None
        case TimeLayer(budget_s=budget_s):
            return Timed(times=stage.time_layer(budget_s)), None
        case LoadStage():
            raise AssertionError("a stage is loaded once")
        case _:
            assert_never(request)


def _reason(error: Exception) -> str:
    """One line: an error made for the operator as it is, any other with its kind."""
    text = (str(error).strip() or "no reason given").splitlines()[0]
    is_for_operators = type(error).__module__.startswith("distllm.") or type(error) is ValueError
    return text if is_for_operators else f"{type(error).__name__}: {text}"


def main(descriptor: int) -> None:
    leave_signals_to_the_front_end()
    end_with_parent()
    rank = FirstRank(Connection(descriptor))
    try:
        rank.run()
    except (EOFError, ConnectionError):
        os._exit(0)
    except Exception as error:
        logger.debug("a stage failed", exc_info=True)
        rank.end(_reason(error))


if __name__ == "__main__":
    main(int(sys.argv[1]))
