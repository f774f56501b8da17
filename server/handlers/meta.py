"""GET /metrics and /version."""

import importlib.metadata

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from distllm.server.handlers.direct_route import DirectRoute
from distllm.server.handlers.json_response import json_response
from distllm.server.service import service_of

router = APIRouter(route_class=DirectRoute)


class Version(msgspec.Struct, frozen=True):
    """The installed version of distllm."""

    version: str


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version(_: Request) -> Response:
    """Which distllm this is."""
    return json_response(Version(importlib.metadata.version("distllm")))
