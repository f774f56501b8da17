"""Turns bytes that are done into progress that is worth a message."""

from distllm.engine.progress import Progress

_STEP = 0.01


class ByteProgress:
    """Tells `on_progress` at the beginning, and whenever another hundredth of `num_bytes` is done."""

    def __init__(self, activity: str, num_bytes: int, on_progress: Progress) -> None:
        self._activity = activity
        self._num_bytes = num_bytes
        self._on_progress = on_progress
        self._num_done = 0
        self._told = 0.0
        on_progress(activity, 0.0)

    def add(self, num_bytes: int) -> None:
        """So many more are done; fewer where some have to be done again."""
        self._num_done += num_bytes
        done = 1.0 if self._num_bytes == 0 else self._num_done / self._num_bytes
        if abs(done - self._told) >= _STEP or done == 1.0:
            self._told = done
            self._on_progress(self._activity, done)
