"""Looks after the ranks in a thread, and says so once when one is lost or hangs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from distllm.engine.distributed.arrivals import CHECK_S, HangWatch
from distllm.engine.distributed.placement import Placement
from distllm.engine.progress import OnLost


class RankWatch:
    """Watches the ranks of `placement` from `start` to `close`. `on_lost` is called in the watching thread."""

    def __init__(self, placement: Placement, timeout_s: float, on_lost: OnLost) -> None:
        self._placement = placement
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._expects_progress = threading.Event()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._watch_forever, name="watch-ranks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def expect_progress(self) -> None:
        """From now on all ranks keep in step: one that keeps the others waiting hangs."""
        self._placement.expect_progress()
        self._expects_progress.set()

    @contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Errors within, which the loss of a rank may be behind, wait until that would have been noticed."""
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError):
            if self._thread.is_alive():
                self._thread.join(self._timeout_s)
            raise

    def close(self) -> None:
        """Watch no longer: the ranks may end."""
        self._is_closing.set()

    def _watch_forever(self) -> None:
        watch = HangWatch(self._placement.arrivals, self._timeout_s)
        while not self._is_closing.wait(CHECK_S):
            self._placement.beat()
            fault = self._placement.fault(self._timeout_s) or self._hang(watch)
            if fault is not None and not self._is_closing.is_set():
                self._placement.kill()
                self._on_lost(fault)
                return

    def _hang(self, watch: HangWatch) -> str | None:
        """Which rank hangs; None where none does, or where ranks may take different times."""
        hanging = watch.laggards()
        if hanging is None or not self._expects_progress.is_set():
            return None
        name = f"rank {hanging[0]}" if hanging else "one of the ranks"
        return f"{name} keeps the others waiting for {self._timeout_s:g} s; it hangs"
