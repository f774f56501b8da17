"""GET /health/live, /health/ready and /health: whether work makes progress, not whether a socket answers."""

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from distllm.scheduler.messages import Loading
from distllm.scheduler.stats import EngineStats
from distllm.server.errors import RETRY_UNAVAILABLE_S, Error
from distllm.server.handlers.direct_route import DirectRoute
from distllm.server.handlers.json_response import json_response
from distllm.server.service import Service, service_of

router = APIRouter(route_class=DirectRoute)


class RouteHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """`unavailable` says why it makes no progress at present; `loading` how far it has come."""

    route: str
    status: str
    unavailable: str | None = None
    loading: Loading | None = None
    engine_restarts: int | None = None


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """`status` is the engine's state, "stalled" when work waits without a step, or "waiting" for machines.

    `routes` says what is missing of each, where there are several; `error` comes with a 503.
    """

    status: str
    seconds_since_progress: float | None = None
    loading: Loading | None = None
    engine_restarts: int | None = None
    engine: dict[str, float] | None = None
    routes: list[RouteHealth] | None = None
    error: Error | None = None


@router.get("/health/live")
async def live(request: Request) -> Response:
    """200 unless only a restart of the server can help."""
    service = service_of(request)
    status = _status(service)
    return _response(service, Health(status), is_well=status not in ("failed", "stopped"))


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """200 when new requests are taken and make progress."""
    service = service_of(request)
    status = _status(service)
    return _response(service, Health(status), is_well=status == "ready")


@router.get("/health")
async def health(request: Request) -> Response:
    """The same as ready, with figures."""
    service = service_of(request)
    engine = service.engine
    report = Health(
        _status(service),
        round(engine.seconds_since_progress, 3),
        engine.loading,
        engine.num_restarts,
        _figures(engine.stats),
        _routes(service),
    )
    return _response(service, report, is_well=report.status == "ready")


def _status(service: Service) -> str:
    if service.engine.state == "ready" and service.router.waiting is not None:
        return "waiting"
    if service.engine.state == "ready" and service.engine.seconds_since_progress > service.settings.stall_s:
        return "stalled"
    return service.engine.state


def _routes(service: Service) -> list[RouteHealth] | None:
    routes = service.router.routes
    if len(routes) == 1:
        return None
    return [
        RouteHealth(
            route.name, route.state, route.unavailable, route.engine.loading, route.engine.num_restarts or None
        )
        for route in routes
    ]


def _figures(stats: EngineStats) -> dict[str, float]:
    return {name: getattr(stats, name) for name in stats.__struct_fields__}


def _response(service: Service, report: Health, is_well: bool) -> Response:
    if is_well:
        return json_response(report)
    waiting = service.router.waiting
    reason = f": {waiting}" if report.status == "waiting" or (waiting and len(service.router.routes) > 1) else ""
    error = Error(f"the server is {report.status}{reason}", "service_unavailable_error", None, report.status)
    response = json_response(msgspec.structs.replace(report, error=error), 503)
    response.headers["Retry-After"] = str(round(RETRY_UNAVAILABLE_S))
    return response
