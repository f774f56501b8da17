"""POST /tokenize and /detokenize."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from distllm.server.body import read_body
from distllm.server.errors import InvalidRequest
from distllm.server.handlers.direct_route import DirectRoute
from distllm.server.handlers.json_response import json_response
from distllm.server.handlers.openapi import describe
from distllm.server.logprob_text import legacy_token
from distllm.server.protocol.json_body import JsonObject
from distllm.server.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizeResponse,
    TokenizerInfo,
    TokenizeTextRequest,
)
from distllm.server.protocol.validation import validate
from distllm.server.service import Service, service_of

router = APIRouter(route_class=DirectRoute)


@router.post("/tokenize", openapi_extra=describe(TokenizeTextRequest, TokenizeChatRequest))
async def tokenize(request: Request) -> Response:
    """Token ids of a prompt or of a conversation."""
    service = service_of(request)
    asked = await read_body(request, service.settings.max_body_bytes, _parse)
    service.check_model(asked.model)
    token_ids = await _encode(service, asked)
    token_strs = None
    if asked.return_token_strs:
        token_strs = [legacy_token(service.tokenizer, token_id) for token_id in token_ids]
    return json_response(TokenizeResponse(len(token_ids), service.limits.max_model_len, token_ids, token_strs))


@router.post("/detokenize", openapi_extra=describe(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    service = service_of(request)
    asked = await read_body(request, service.settings.max_body_bytes, partial(validate, DetokenizeRequest))
    service.check_model(asked.model)
    service.limits.check_token_ids(asked.tokens, "tokens")
    return json_response(DetokenizeResponse(await service.tokenizer.decode_long(asked.tokens)))


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """Special tokens and the chat template."""
    tokenizer = service_of(request).tokenizer
    roles = {f"{role}_token": tokenizer.special_token(role) for role in ("bos", "eos", "pad", "unk")}
    return json_response(TokenizerInfo(**roles, chat_template=tokenizer.chat_template))


def _parse(body: JsonObject) -> TokenizeTextRequest | TokenizeChatRequest:
    match "prompt" in body, "messages" in body:
        case True, False:
            return validate(TokenizeTextRequest, body)
        case False, True:
            asked = validate(TokenizeChatRequest, body)
            asked.check_template_fields()
            return asked
        case _:
            raise InvalidRequest("send either prompt or messages", "prompt", "missing_required_parameter")


async def _encode(service: Service, asked: TokenizeTextRequest | TokenizeChatRequest) -> list[int]:
    if isinstance(asked, TokenizeChatRequest):
        return await service.encode_chat(asked)
    return await service.tokenizer.encode(asked.prompt, asked.add_special_tokens is not False)
