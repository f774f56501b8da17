"""Counts and times HTTP responses by route and status."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distllm.server.metrics import Metrics

_UNMATCHED = "unmatched"
_NO_RESPONSE = 499  # the client left before there was one
_METHODS = frozenset(("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"))


class HttpMetricsMiddleware:
    """Pure ASGI. Unknown paths and methods share one label each, so that clients cannot grow the registry."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = _NO_RESPONSE

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", _UNMATCHED)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.http_requests.labels(method, route, status).inc()
            self._metrics.http_s.labels(route).observe(time.perf_counter() - begun)
