"""POST /v1/completions."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from distllm.server.answer_head import new_request_id
from distllm.server.body import read_body
from distllm.server.disconnect import unless_disconnected
from distllm.server.generation_plan import GenerationPlan, Limits, PromptPlan, check_num_choices
from distllm.server.handlers.collect import collect
from distllm.server.handlers.completion_chunks import CompletionChunks
from distllm.server.handlers.direct_route import DirectRoute
from distllm.server.handlers.json_response import json_response
from distllm.server.handlers.openapi import describe
from distllm.server.handlers.streams import begin_resumable, resume
from distllm.server.protocol.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from distllm.server.protocol.validation import validate
from distllm.server.routing.router import ROUTE_HEADER
from distllm.server.service import Service, service_of
from distllm.server.streaming import EventStream, frames

router = APIRouter(route_class=DirectRoute)


@router.post("/v1/completions", openapi_extra=describe(CompletionRequest))
async def create_completion(request: Request) -> Response:
    """OpenAI's completion: text goes on from a prompt."""
    service = service_of(request)
    if resumed := resume(request):
        return resumed
    asked = await read_body(request, service.settings.max_body_bytes, partial(validate, CompletionRequest))
    asked.check()
    service.check_model(asked.model)
    await service.early.admit(request.receive)
    plan = await plan_completion(service, asked)
    routing = service.choose_route(plan, request.headers.get(ROUTE_HEADER))
    plan = plan.within(routing.route.max_len())
    resumable = await begin_resumable(request, "completions", plan, asked, routing) if asked.stream else {}
    if isinstance(resumable, Response):
        return resumable
    generation = service.generation(plan, new_request_id("completions"), routing)
    chunks = CompletionChunks(generation, service.tokenizer, service.answer_head(asked, routing))
    await generation.start()
    if asked.stream:
        return EventStream(
            frames(generation, chunks),
            generation,
            service.settings.keep_alive_s,
            headers={**generation.headers, **resumable},
        )
    async with generation:
        choices = await unless_disconnected(request.receive, collect(generation))
    return json_response(chunks.whole(choices), headers=generation.headers)


async def plan_completion(service: Service, asked: CompletionRequest) -> GenerationPlan:
    """Prompts as token ids within the model's limits. Raises InvalidRequest, InvalidParameter."""
    settings = service.settings
    check_num_choices(len(asked.prompt), asked.num_sampled, settings.max_choices, settings.max_live)
    limits = service.limits
    return GenerationPlan(
        prompts=await _plan_prompts(service, asked, limits),
        n=asked.n or 1,
        num_sampled=asked.num_sampled,
        seed=asked.seed,
        stop=asked.stop,
        include_stop=bool(asked.include_stop_str_in_output),
        skip_special_tokens=asked.skip_special_tokens is not False,
        echo=bool(asked.echo),
        num_top_logprobs=asked.logprobs,
        num_top_prompt_logprobs=asked.prompt_logprobs,
        priority=asked.priority or 0,
    )


async def _plan_prompts(service: Service, asked: CompletionRequest, limits: Limits) -> tuple[PromptPlan, ...]:
    is_ranked = asked.num_sampled > (asked.n or 1)
    default = DEFAULT_MAX_TOKENS if service.defaults.max_tokens is None else service.defaults.max_tokens
    max_field = None if asked.max_tokens is None else "max_tokens"
    params = asked.sampling_params(
        service.defaults,
        max_tokens=default if asked.max_tokens is None else asked.max_tokens,
        logprobs=0 if asked.logprobs is None and is_ranked else asked.logprobs,
        prompt_logprobs=_more(asked.prompt_logprobs, asked.logprobs if asked.echo else None),
    )
    limits.check_params(params)
    plans = []
    for number, prompt in enumerate(asked.prompt):
        field = f"prompt[{number}]" if len(asked.prompt) > 1 else "prompt"
        text = prompt if isinstance(prompt, str) else None
        token_ids = await service.encode_prompt(prompt, field) if isinstance(prompt, str) else prompt
        plans.append(limits.plan_prompt(token_ids, text, params, field, max_field))
    return tuple(plans)


def _more(*counts: int | None) -> int | None:
    return max((count for count in counts if count is not None), default=None)
