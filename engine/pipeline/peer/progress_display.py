"""Shows a peer's operator how far loading is: a bar on a terminal, elsewhere a log line every few seconds."""

import logging
import sys
import time

from distllm.engine.progress_bar import ProgressBar

logger = logging.getLogger("distllm.pipeline")


class ProgressDisplay:
    """Shows one activity at a time. Close it behind each; it can be used again."""

    def __init__(self, line_every_s: float = 5.0) -> None:
        self._line_every_s = line_every_s
        self._activity = ""
        self._told_s = 0.0
        self._bar = ProgressBar()

    def show(self, activity: str, done: float) -> None:
        """That so much of it is done, in [0, 1]."""
        if sys.stderr.isatty():
            self._bar.show(activity, done)
        elif activity != self._activity or time.monotonic() > self._told_s + self._line_every_s:
            logger.info("%s: %.0f%%", activity, 100 * done)
            self._activity, self._told_s = activity, time.monotonic()

    def close(self) -> None:
        self._bar.close()
        self._activity = ""
