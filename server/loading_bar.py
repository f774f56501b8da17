"""Shows the operator how far a start has come: a bar on a terminal, a line of the log a stage elsewhere."""

import logging
import sys

from distllm.engine.progress_bar import ProgressBar
from distllm.scheduler.messages import Loading

logger = logging.getLogger("distllm.server")


class LoadingBar:
    """Follows Loading messages; call it with each, then close it. One that is not `is_alone` leaves the terminal
    to another."""

    def __init__(self, is_alone: bool = True) -> None:
        self._has_bar = is_alone and sys.stderr.isatty()
        self._activity = ""
        self._bar = ProgressBar()

    def __call__(self, progress: Loading) -> None:
        if self._has_bar:
            self._bar.show(progress.activity, progress.fraction)
        elif progress.activity != self._activity:
            logger.info("%s", progress.activity)
        self._activity = progress.activity

    def close(self) -> None:
        self._bar.close()
