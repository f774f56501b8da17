"""Shows the operator how far a start has come: a bar on a terminal, a line a stage elsewhere."""

import sys
from typing import NoReturn

from tqdm import tqdm

from distllm.scheduler.messages import Loading


class LoadingBar:
    """Follows Loading messages; call it with each, then close it."""

    def __init__(self) -> None:
        self._activity = ""
        self._bar: tqdm[NoReturn] | None = None

    def __call__(self, progress: Loading) -> None:
        if not sys.stderr.isatty():
            return
        if progress.activity != self._activity:
            self.close()
            self._activity = progress.activity
            self._bar = tqdm(total=100, desc=progress.activity, bar_format="{desc}: {percentage:3.0f}% |{bar}|")
        if self._bar is not None:
            self._bar.update(100 * progress.fraction - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
