"""Which way requests went, and how what was predicted of them compares with what happened."""

from prometheus_client import CollectorRegistry, Counter, Summary

from distllm.engine.pipeline.placement.routing import Route
from distllm.server.routing.forecast import Forecast


class RouteMetrics:
    """Sums of both over the same requests, so that their ratio tells how far predictions are off."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "distllm_route_requests",
            "Requests by route and why they went there.",
            ("route", "why"),
            registry=registry,
        )
        self._moves = Counter(
            "distllm_route_moves",
            "Prompts that were moved to another route, as theirs could not go on.",
            ("from", "to"),
            registry=registry,
        )
        self._seconds = {
            (what, which): Summary(
                f"distllm_route_{which}_{what}_seconds",
                f"{which.capitalize()} {what.upper()} of requests of which it was predicted.",
                ("route",),
                registry=registry,
            )
            for what in ("ttft", "tpot")
            for which in ("predicted", "actual")
        }

    def count(self, forecast: Forecast) -> None:
        self._requests.labels(forecast.route, forecast.reason_class).inc()

    def count_move(self, source: Route, destination: Route) -> None:
        self._moves.labels(source, destination).inc()

    def note_ttft(self, forecast: Forecast, seconds: float) -> None:
        self._note("ttft", forecast, forecast.ttft_s, seconds)

    def note_tpot(self, forecast: Forecast, seconds: float) -> None:
        self._note("tpot", forecast, forecast.tpot_s, seconds)

    def _note(self, what: str, forecast: Forecast, predicted_s: float | None, actual_s: float) -> None:
        if predicted_s is not None:
            self._seconds[what, "predicted"].labels(forecast.route).observe(predicted_s)
            self._seconds[what, "actual"].labels(forecast.route).observe(actual_s)
