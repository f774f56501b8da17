"""What the answers of a server have taken so far, for one that cannot say what the next will take."""

from collections.abc import Sequence

from distllm.engine.pipeline.placement.routing import RouteState

_WEIGHT = 0.3
"""Of a new answer in a smoothed figure."""
_UNKNOWN_TPOT_S = 0.05
"""Before the first answer."""
_NUM_MACHINES = 2
"""A server that does not say how many share a model is taken to have more than one."""


class ObservedLatency:
    """Prompts are taken to wait as those before them, whatever their length."""

    def __init__(self) -> None:
        self._ttft_s: float | None = None
        self._tpot_s: float | None = None

    def note_whole(self, seconds: float, num_tokens: float) -> None:
        """An answer that came in one piece: of its time, each token is taken to have had the same part."""
        if num_tokens >= 1:
            self._tpot_s = _smoothed(self._tpot_s, seconds / num_tokens)

    def note_pieces(self, arrivals_s: Sequence[float]) -> None:
        """An answer of which a piece is about a token: seconds from the call to each."""
        if arrivals_s:
            self._ttft_s = _smoothed(self._ttft_s, arrivals_s[0])
        if len(arrivals_s) > 1:
            self._tpot_s = _smoothed(self._tpot_s, (arrivals_s[-1] - arrivals_s[0]) / (len(arrivals_s) - 1))

    def route_state(self, unavailable: str | None = None) -> RouteState:
        tpot_s = _UNKNOWN_TPOT_S if self._tpot_s is None else self._tpot_s
        ttft_s = tpot_s if self._ttft_s is None else self._ttft_s
        return RouteState(
            "pipeline",
            prefill_tokens_per_s=float("inf"),
            tpot_s=tpot_s,
            queue_s=max(0.0, ttft_s - tpot_s),
            num_machines=_NUM_MACHINES,
            unavailable=unavailable,
        )


def _smoothed(before: float | None, sample: float) -> float:
    return sample if before is None else before + _WEIGHT * (sample - before)
