"""A bar on the operator's terminal."""

import sys
from typing import NoReturn

from tqdm import tqdm


class ProgressBar:
    """Shows one activity at a time. Close it."""

    def __init__(self) -> None:
        self._activity = ""
        self._bar: tqdm[NoReturn] | None = None

    def show(self, activity: str, fraction: float) -> None:
        """That so much of it is done, in [0, 1]."""
        if self._bar is None or activity != self._activity:
            self.close()
            self._activity = activity
            self._bar = tqdm(
                total=100, desc=activity, bar_format="{desc}: {percentage:3.0f}% |{bar}|", file=sys.stderr
            )
        self._bar.update(100 * fraction - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
