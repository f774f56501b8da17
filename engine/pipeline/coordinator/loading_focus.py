"""Tells how far loading is while several peers load at once: of one of them at a time."""

import time

from distllm.engine.pipeline.messages import Loading
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.progress import Progress


class LoadingFocus:
    """Stays with a peer until what it does is done, or nothing is heard of it for a while."""

    def __init__(self, on_progress: Progress, silence_s: float = 2.0) -> None:
        self._on_progress = on_progress
        self._silence_s = silence_s
        self._peer_id: PeerId | None = None
        self._heard_s = 0.0

    def __call__(self, peer_id: PeerId, loading: Loading) -> None:
        now_s = time.monotonic()
        if self._peer_id not in (None, peer_id) and now_s < self._heard_s + self._silence_s:
            return
        self._peer_id, self._heard_s = (None if loading.done >= 1.0 else peer_id), now_s
        self._on_progress(f"{peer_id}: {loading.activity}", loading.done)
