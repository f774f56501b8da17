"""POST /v1/route/explain: where a request would go and why. Nothing is generated, and nothing remembered."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from distllm.engine.pipeline.placement.routing import RouteEstimate, RouteState, estimate_route
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.body import read_body
from distllm.server.errors import InvalidRequest
from distllm.server.generation_plan import GenerationPlan
from distllm.server.handlers.chat import plan_chat
from distllm.server.handlers.completions import plan_completion
from distllm.server.handlers.direct_route import DirectRoute
from distllm.server.handlers.json_response import json_response
from distllm.server.handlers.openapi import describe
from distllm.server.protocol.chat import ChatCompletionRequest
from distllm.server.protocol.completions import CompletionRequest
from distllm.server.protocol.json_body import JsonObject
from distllm.server.protocol.routes import RouteExplanation, RoutePrediction, RouteReport, RouteTarget
from distllm.server.protocol.validation import validate
from distllm.server.routing.route import EngineRoute
from distllm.server.routing.router import ROUTE_HEADER, size_of
from distllm.server.service import Service, service_of

router = APIRouter(route_class=DirectRoute)


@router.post("/v1/route/explain", openapi_extra=describe(CompletionRequest, ChatCompletionRequest))
async def explain_route(request: Request) -> Response:
    """What is predicted of a completion or a chat completion on every route, and which it would take."""
    service = service_of(request)
    asked = await read_body(request, service.settings.max_body_bytes, _parse)
    asked.check()
    service.check_model(asked.model)
    if isinstance(asked, ChatCompletionRequest):
        plan = await plan_chat(service, asked)
    else:
        plan = await plan_completion(service, asked)
    for route in service.router.routes:
        await service.prober.measured(route)
    return json_response(_explain(service, plan, request.headers.get(ROUTE_HEADER)))


def _parse(body: JsonObject) -> CompletionRequest | ChatCompletionRequest:
    match "prompt" in body, "messages" in body:
        case True, False:
            return validate(CompletionRequest, body)
        case False, True:
            return validate(ChatCompletionRequest, body)
        case _:
            raise InvalidRequest("send either prompt or messages", "prompt", "missing_required_parameter")


def _explain(service: Service, plan: GenerationPlan, asked: str | None) -> RouteExplanation:
    size, target = size_of(plan), service.router.target
    route, why = None, None
    try:
        forecast = service.router.predict(plan, asked).forecast
        route, why, reason = forecast.route, forecast.reason_class, forecast.reason
    except EngineUnavailable as unavailable:
        reason = unavailable.reason
    return RouteExplanation(
        object="route.explanation",
        route=route,
        why=why,
        reason=reason,
        prompt_tokens=size.prompt_tokens,
        max_tokens=size.max_new_tokens,
        num_sequences=size.num_sequences,
        target=RouteTarget(target.ttft_s, target.tpot_s),
        routes=[_report(service, route, plan) for route in service.router.routes],
    )


def _report(service: Service, route: EngineRoute, plan: GenerationPlan) -> RouteReport:
    size = size_of(plan)
    state = route.route_state(size)
    estimate = estimate_route(state, size.prompt_tokens, size.max_new_tokens, service.router.target)
    stats = route.engine.stats
    is_loaded = route.numerics is not None
    return RouteReport(
        route=route.name,
        unavailable=state.unavailable,
        prediction=None if state.unavailable is not None else _prediction(state, estimate),
        prefill_tokens_per_s=state.prefill_tokens_per_s,
        is_measured=route.pace.is_measured,
        num_machines=state.num_machines,
        num_live=route.num_live,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        max_model_len=route.max_len() if is_loaded else None,
        numerics=route.numerics,
    )


def _prediction(state: RouteState, estimate: RouteEstimate) -> RoutePrediction:
    return RoutePrediction(
        meets_target=estimate.meets_target,
        queue_s=state.queue_s,
        ttft_s=estimate.ttft_s,
        tpot_s=estimate.tpot_s,
        total_s=estimate.total_s,
        machine_s=estimate.machine_s,
    )
