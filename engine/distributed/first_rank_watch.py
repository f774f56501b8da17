"""Notices that the first rank hangs, which only others can: by its beats, and by who waits for whom.

Ranks of its host do so in a thread. Where ranks are on other hosts, from which nothing can be killed, a process of
its own does: `python -m distllm.engine.distributed.first_rank_watch DESCRIPTOR SIZE TIMEOUT_S`.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from distllm.engine.distributed.arrivals import CHECK_S, Arrivals, HangWatch, Stillness
from distllm.engine.parent_death import end_with_parent, leave_signals_to_the_front_end

logger = logging.getLogger("distllm.engine")


def watch_first_rank(arrivals: Arrivals, timeout_s: float, end: Callable[[], None]) -> None:
    """In a thread, call `end` when the first rank has hung for `timeout_s`."""

    def watch() -> None:
        wait_for_hang(arrivals, timeout_s)
        logger.error("the first rank has not moved for %g s; it hangs and is ended", timeout_s)
        end()

    threading.Thread(target=watch, name="watch-first-rank", daemon=True).start()


def wait_for_hang(arrivals: Arrivals, timeout_s: float) -> None:
    """Return when the first rank has hung for `timeout_s`."""
    pause, beats, hang = threading.Event(), Stillness(), HangWatch(arrivals, timeout_s)
    while beats.seconds(arrivals.num_beats) < timeout_s and 0 not in (hang.laggards() or ()):
        pause.wait(CHECK_S)


def kill(pid: int) -> None:
    """What ends a first rank of this host."""
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    leave_signals_to_the_front_end()
    end_with_parent()
    parent = os.getppid()
    wait_for_hang(Arrivals(int(sys.argv[1]), 0, int(sys.argv[2])), float(sys.argv[3]))
    kill(parent)
