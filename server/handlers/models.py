"""GET /v1/models and /v1/models/{id}."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.handlers.direct_route import DirectRoute
from distllm.server.handlers.json_response import json_response
from distllm.server.protocol.responses import ModelCard, ModelList
from distllm.server.service import Service, service_of

router = APIRouter(route_class=DirectRoute)


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """Every name that requests may use."""
    service = service_of(request)
    return json_response(ModelList([_card(service, name) for name in service.settings.model_names]))


@router.get("/v1/models/{model_id:path}")
async def show_model(request: Request) -> Response:
    """One of them."""
    service = service_of(request)
    model_id: str = request.path_params["model_id"]
    service.check_model(model_id)
    return json_response(_card(service, model_id))


def _card(service: Service, name: str) -> ModelCard:
    try:
        max_model_len = service.limits.max_model_len
    except EngineUnavailable:
        max_model_len = None
    return ModelCard(name, service.created, max_model_len)
