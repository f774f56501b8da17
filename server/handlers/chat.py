"""POST /v1/chat/completions."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from distllm.server.answer_head import new_request_id
from distllm.server.body import read_body
from distllm.server.disconnect import unless_disconnected
from distllm.server.generation_plan import GenerationPlan, check_num_choices
from distllm.server.handlers.chat_chunks import ChatChunks
from distllm.server.handlers.collect import collect
from distllm.server.handlers.direct_route import DirectRoute
from distllm.server.handlers.json_response import json_response
from distllm.server.handlers.openapi import describe
from distllm.server.handlers.streams import begin_resumable, resume
from distllm.server.protocol.chat import ChatCompletionRequest
from distllm.server.protocol.validation import validate
from distllm.server.routing.router import ROUTE_HEADER
from distllm.server.service import Service, service_of
from distllm.server.streaming import EventStream, frames

router = APIRouter(route_class=DirectRoute)


@router.post("/v1/chat/completions", openapi_extra=describe(ChatCompletionRequest))
async def create_chat_completion(request: Request) -> Response:
    """OpenAI's chat completion: the assistant's next message."""
    service = service_of(request)
    if resumed := resume(request):
        return resumed
    asked = await read_body(request, service.settings.max_body_bytes, partial(validate, ChatCompletionRequest))
    asked.check()
    service.check_model(asked.model)
    await service.early.admit(request.receive)
    plan = await plan_chat(service, asked)
    routing = service.choose_route(plan, request.headers.get(ROUTE_HEADER))
    plan = plan.within(routing.route.max_len())
    resumable = await begin_resumable(request, "chat", plan, asked, routing) if asked.stream else {}
    if isinstance(resumable, Response):
        return resumable
    generation = service.generation(plan, new_request_id("chat"), routing)
    chunks = ChatChunks(generation, service.tokenizer, service.answer_head(asked, routing))
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


async def plan_chat(service: Service, asked: ChatCompletionRequest) -> GenerationPlan:
    """The conversation as one prompt within the model's limits. Raises InvalidRequest, InvalidParameter."""
    n = asked.n or 1
    check_num_choices(1, n, service.settings.max_choices, service.settings.max_live)
    limits = service.limits
    max_tokens = asked.asked_max_tokens
    max_field = None if max_tokens is None else asked.max_tokens_field
    params = asked.sampling_params(
        service.defaults,
        max_tokens=service.defaults.max_tokens if max_tokens is None else max_tokens,
        logprobs=asked.num_top_logprobs,
        prompt_logprobs=asked.prompt_logprobs,
    )
    limits.check_params(params)
    token_ids = await service.encode_chat(asked, limits.max_model_len)
    return GenerationPlan(
        prompts=(limits.plan_prompt(token_ids, None, params, "messages", max_field),),
        n=n,
        num_sampled=n,
        seed=asked.seed,
        stop=asked.stop,
        include_stop=bool(asked.include_stop_str_in_output),
        skip_special_tokens=asked.skip_special_tokens is not False,
        num_top_logprobs=asked.num_top_logprobs,
        num_top_prompt_logprobs=asked.prompt_logprobs,
        priority=asked.priority or 0,
    )
