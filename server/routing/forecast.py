"""Where a request was sent and why, as its response and the metrics tell."""

from dataclasses import dataclass
from typing import Literal

from distllm.engine.pipeline.placement.routing import Route, Why

ReasonClass = Why | Literal["only", "forced", "waits", "restored"]
"""The server has no other route; the client asked for it; no route can run it now, and this one takes it; it was
sent there before the server was started again."""

_LONGEST = 800


@dataclass(frozen=True, slots=True)
class Forecast:
    """`ttft_s` and `tpot_s` are what was predicted of the request, None where nothing was. `reason` is a line."""

    route: Route
    reason_class: ReasonClass
    reason: str
    ttft_s: float | None = None
    tpot_s: float | None = None

    def after_move(self, route: Route) -> "Forecast":
        """Of a request that goes on on another route than it was sent to. Nothing was predicted of that."""
        reason = f"it was moved from {self.route}, which could not go on. Before: {self.reason}"
        return Forecast(route, self.reason_class, reason)

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return {"x-route": self.route, "x-route-reason": header_text(self.reason)}


def header_text(text: str) -> str:
    """Characters that any client reads in a header, on one line."""
    line = " ".join(text.replace("µ", "u").split())
    return line.encode("ascii", "replace").decode()[:_LONGEST]
