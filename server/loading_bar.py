"""Shows the operator how far a start has come: a bar on a terminal, a line of the log a stage elsewhere."""

import logging
import sys
from typing import NoReturn

from tqdm import tqdm

from distllm.scheduler.messages import Loading

logger = logging.getLogger("distllm.server")


class LoadingBar:
    """Follows Loading messages; call it with each, then close it."""

    def __init__(self) -> None:
        self._activity = ""
        self._bar: tqdm[NoReturn] | None = None

    def __call__(self, progress: Loading) -> None:
        if progress.activity != self._activity:
            self.close()
            self._activity = progress.activity
            self._begin(progress.activity)
        if self._bar is not None:
            self._bar.update(100 * progress.fraction - self._bar.n)

    def _begin(self, activity: str) -> None:
        if sys.stderr.isatty():
            self._bar = tqdm(total=100, desc=activity, bar_format="{desc}: {percentage:3.0f}% |{bar}|")
        else:
            logger.info("%s", activity)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
