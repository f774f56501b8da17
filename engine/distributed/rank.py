"""A rank's program: holds its part of a model and computes the steps that the first rank sends to all.

Started as `python -m distllm.engine.distributed.rank DESCRIPTORS` by the engine process, which is the first rank,
and ended with it; or by a launcher's agent, as launched_rank.py says.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.cores import bind
from distllm.engine.distributed.first_rank_watch import kill, watch_first_rank
from distllm.engine.distributed.rank_start import RankStart
from distllm.engine.distributed.shared_memory_link import Descriptors, SharedMemoryLink
from distllm.engine.parent_death import end_with_parent, leave_signals_to_the_front_end

if TYPE_CHECKING:
    from distllm.engine.batch import StepTensors
    from distllm.engine.distributed.step_exchange import RankResult
    from distllm.engine.distributed.step_frame import FrameSize

logger = logging.getLogger("distllm.engine")

_DELAY_S = 1.0


class FirstRankLink(Protocol):
    """A rank's way to the first one. Its methods raise EOFError or ConnectionError once that has gone."""

    def receive_start(self) -> RankStart: ...

    def join(self, rank: int, size: int) -> Arrivals:
        """The counters by which ranks look after each other."""

    def open_frame(self, size: "FrameSize") -> None: ...

    def receive_step(self) -> "StepTensors": ...

    def send_result(self, result: "RankResult") -> None: ...

    def alarm(self, reason: str) -> None:
        """Say why this rank cannot go on."""


def run_rank(link: FirstRankLink) -> None:
    """Run a rank until the first one has gone."""
    try:
        start = link.receive_start()
        bind(frozenset(start.cores or ()))  # before libraries start threads
        logging.basicConfig(level=start.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        _compute(start, link)
    except (EOFError, ConnectionError):  # the first rank has gone
        os._exit(0)
    except Exception as error:
        logger.debug("a rank failed", exc_info=True)
        if not _is_for_operators(error):  # the loss of another rank may be behind it, of which the first one knows
            time.sleep(_DELAY_S)
        with contextlib.suppress(ConnectionError):
            link.alarm(_reason(error))
        signal.pause()  # until this process is ended


def _compute(start: RankStart, link: FirstRankLink) -> None:
    """Load this rank's part, take part in sizing the cache, and compute steps."""
    from distllm.engine.device import measure_free_bytes
    from distllm.engine.distributed.deepspeed_group import DeepSpeedGroup
    from distllm.engine.distributed.pool_agreement import agree_on_pool
    from distllm.engine.distributed.rank_check import RankCheck
    from distllm.engine.distributed.step_exchange import RankResult
    from distllm.engine.pipeline.ranks.following_rank import FollowingRank
    from distllm.engine.served_model import prepare_model

    config, membership = start.config, start.membership
    _check_model(config.model, membership.rank)
    arrivals = link.join(membership.rank, membership.size)
    group = DeepSpeedGroup(membership, arrivals)
    served = prepare_model(config, lambda *_: None, group, start.layers)
    pool = agree_on_pool(config, served, group, measure_free_bytes(served.device))
    link.open_frame(pool.frame_size)
    end = partial(os._exit, 1) if start.first_rank_pid is None else partial(kill, start.first_rank_pid)
    if start.layers is not None:
        assert isinstance(link, SharedMemoryLink), "the ranks of a stage are on one host"
        group.gather_numbers([0])  # all are ready for orders
        watch_first_rank(arrivals, config.rank_timeout_s, end)
        FollowingRank(served, group, arrivals, link).follow()
    forward = served.forward_over(pool.num_blocks)
    check = RankCheck(served.model, config.rank_check_steps)
    group.gather_numbers([0])  # all are ready for steps
    watch_first_rank(arrivals, config.rank_timeout_s, end)
    while True:
        logits = forward.needed(link.receive_step())
        with arrivals.waiting():
            link.send_result(RankResult(check.digest(), logits))


def _check_model(path: str, rank: int) -> None:
    """Ranks read the checkpoint each for itself. Raises ValueError where this host has none."""
    if not Path(path).exists():
        raise ValueError(
            f"host {socket.gethostname()} of rank {rank} has no {path}: every host needs the model at the same path"
        )


def _reason(error: Exception) -> str:
    """One line: an error made for the operator as it is, any other with its kind."""
    first = (str(error).strip() or "no reason given").splitlines()[0]
    if _is_for_operators(error):
        return first
    return f"{type(error).__name__}: {first}; --log-level DEBUG shows where"


def _is_for_operators(error: Exception) -> bool:
    return type(error).__module__.startswith("distllm.") or type(error) is ValueError


if __name__ == "__main__":
    leave_signals_to_the_front_end()
    end_with_parent()
    run_rank(SharedMemoryLink(Descriptors(*map(int, sys.argv[1].split(",")))))
