"""A rank's process: holds its part of a model and computes the steps that the first rank writes for all.

Started as `python -m distllm.engine.distributed.rank DESCRIPTORS` by the engine process, which is the first rank,
and ended with it.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.arrivals import Arrivals, HangWatch, Stillness
from distllm.engine.distributed.cores import bind

logger = logging.getLogger("distllm.engine")

STALL_CHECK_S = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What a rank inherits: connections for steps and for what went wrong, and two pieces of shared memory."""

    control: int
    alarm: int
    arrivals: int
    frame: int

    def text(self) -> str:
        return f"{self.control},{self.alarm},{self.arrivals},{self.frame}"


def main(text: str) -> None:
    """Run a rank until the first rank's end of the connection closes."""
    descriptors = Descriptors(*map(int, text.split(",")))
    _end_with_parent()
    control, alarm = Connection(descriptors.control), Connection(descriptors.alarm)
    try:
        start = json.loads(control.recv_bytes())
        bind(frozenset(start["cores"]))
        logging.basicConfig(level=start["log_level"], format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        _run(start, descriptors, control)
    except (EOFError, OSError):  # the first rank has gone
        os._exit(0)
    except Exception as error:
        logger.debug("a rank failed", exc_info=True)
        alarm.send_bytes(_reason(error).encode())
        signal.pause()  # until the first rank has ended this one


def _run(start: dict[str, Any], descriptors: Descriptors, control: Connection) -> None:
    """Load this rank's part, take part in sizing the cache, and compute steps."""
    from distllm.engine.device import measure_free_bytes
    from distllm.engine.distributed.deepspeed_group import DeepSpeedGroup, Membership
    from distllm.engine.distributed.pool_agreement import agree_on_pool
    from distllm.engine.distributed.rank_check import RankCheck
    from distllm.engine.distributed.step_frame import StepFrame
    from distllm.engine.served_model import prepare_model

    config, membership = EngineConfig.of(start["config"]), Membership(**start["membership"])
    arrivals = Arrivals(descriptors.arrivals, membership.rank, membership.size)
    group = DeepSpeedGroup(membership, arrivals)
    served = prepare_model(config, lambda *_: None, group)
    pool = agree_on_pool(config, served, group, measure_free_bytes(served.device))
    forward = served.forward_over(pool.num_blocks)
    frame = StepFrame(descriptors.frame, pool.frame_size)
    check = RankCheck(served.model, config.rank_check_steps)
    group.gather_numbers([0])  # all are ready for steps
    _watch_first_rank(arrivals, config.rank_timeout_s)
    while True:
        control.recv_bytes()
        frame.write_logits(membership.rank, forward.needed(frame.read()))
        with arrivals.waiting():
            control.send_bytes(check.digest())


def _watch_first_rank(arrivals: Arrivals, timeout_s: float) -> None:
    """End the first rank when it hangs: the one whom no other process watches."""
    parent = os.getppid()

    def watch() -> None:
        beats, hang = Stillness(), HangWatch(arrivals, timeout_s)
        while beats.seconds(arrivals.num_beats) < timeout_s and 0 not in (hang.laggards() or ()):
            pause.wait(STALL_CHECK_S)
        logger.error("the first rank has not moved for %g s; it hangs and is ended", timeout_s)
        os.kill(parent, signal.SIGKILL)

    pause = threading.Event()
    threading.Thread(target=watch, name="watch-first-rank", daemon=True).start()


def _reason(error: Exception) -> str:
    """One line: an error made for the operator as it is, any other with its kind."""
    first = (str(error).strip() or "no reason given").splitlines()[0]
    is_for_operators = type(error).__module__.startswith("distllm.") or type(error) is ValueError
    return first if is_for_operators else f"{type(error).__name__}: {first}; --log-level DEBUG shows where"


def _end_with_parent() -> None:
    """Signals are for the front end to handle; when the engine process has gone, so has this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
