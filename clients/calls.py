"""Each call on the server as a value: what to send, and how to read the reply. Neither sends nor waits."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from distllm.clients.errors import (
    UNREADABLE,
    APIError,
    InvalidCallError,
    UnexpectedReplyError,
    error_class,
    read_error_object,
)
from distllm.clients.options import ChatOptions, CompletionOptions, Prompt
from distllm.clients.results import (
    ChatChunk,
    ChatCompletion,
    Completion,
    Detokenization,
    Health,
    Message,
    Model,
    ModelList,
    RouteExplanation,
    Tokenization,
)
from distllm.clients.retries import retry_after_s

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP reply. `headers` has lower-case names or ignores case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One HTTP request. `read` turns the reply into a result or raises; a refusal is retried if `is_repeatable`."""

    method: str
    path: str
    read: Callable[[Reply], Result]
    body: bytes | None = None
    is_repeatable: bool = True


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[Result]):
    """One HTTP request whose reply is an event stream; `read_event` turns an event's data into a chunk."""

    path: str
    body: bytes
    read_event: Callable[[str], Result]


def complete(prompt: Prompt, model: str, options: CompletionOptions) -> Call[Completion]:
    body = _json({"model": model, "prompt": prompt, **options})
    return Call("POST", "/v1/completions", _reader(Completion), body)


def complete_stream(
    prompt: Prompt, model: str, include_usage: bool, options: CompletionOptions
) -> StreamCall[Completion]:
    body = _json({"model": model, "prompt": prompt, **options, **_streaming(include_usage)})
    return StreamCall("/v1/completions", body, _event_reader(Completion))


def chat(messages: Iterable[Message], model: str, options: ChatOptions) -> Call[ChatCompletion]:
    body = _json({"model": model, "messages": list(messages), **options})
    return Call("POST", "/v1/chat/completions", _reader(ChatCompletion), body)


def chat_stream(
    messages: Iterable[Message], model: str, include_usage: bool, options: ChatOptions
) -> StreamCall[ChatChunk]:
    body = _json({"model": model, "messages": list(messages), **options, **_streaming(include_usage)})
    return StreamCall("/v1/chat/completions", body, _event_reader(ChatChunk))


def explain_route(prompt: Prompt, model: str, options: CompletionOptions) -> Call[RouteExplanation]:
    body = _json({"model": model, "prompt": prompt, **options})
    return Call("POST", "/v1/route/explain", _reader(RouteExplanation), body)


def tokenize(text: str, model: str, add_special_tokens: bool) -> Call[Tokenization]:
    body = _json({"model": model, "prompt": text, "add_special_tokens": add_special_tokens})
    return Call("POST", "/tokenize", _reader(Tokenization), body)


def detokenize(tokens: Iterable[int], model: str) -> Call[Detokenization]:
    return Call("POST", "/detokenize", _reader(Detokenization), _json({"model": model, "tokens": list(tokens)}))


def models() -> Call[ModelList]:
    return Call("GET", "/v1/models", _reader(ModelList))


def health() -> Call[Health]:
    """Readiness is a result here, not an error: 503 reads as `is_ready` False."""
    return Call("GET", "/health", _read_health, is_repeatable=False)


def first_model(models: list[Model]) -> str:
    """The name to use where the caller gave none."""
    if not models:
        raise UnexpectedReplyError("the server lists no model")
    return models[0].id


def api_error(reply: Reply) -> APIError:
    """The exception for an error reply; of another service's reply the first text becomes the message."""
    fields = read_error_object(reply.body)
    if fields is None:
        fields = {"message": reply.body[:200].decode("utf-8", errors="replace").strip()}
    return error_class(reply.status).from_object(
        fields, status=reply.status, retry_after_s=retry_after_s(reply.headers)
    )


def _json(body: Mapping[str, object]) -> bytes:
    """Raises InvalidCallError for what JSON lacks: NaN, infinities, objects of other kinds."""
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidCallError(f"the request cannot be written as JSON: {error}") from error


def _streaming(include_usage: bool) -> dict[str, object]:
    return {"stream": True} | ({"stream_options": {"include_usage": True}} if include_usage else {})


def _reader(result: type[Result]) -> Callable[[Reply], Result]:
    decoder = msgspec.json.Decoder(result)

    def read(reply: Reply) -> Result:
        if reply.status // 100 != 2:
            raise api_error(reply)
        try:
            return decoder.decode(reply.body)
        except UNREADABLE as error:
            raise UnexpectedReplyError(f"the reply is not a {result.__name__}: {error}") from error

    return read


def _event_reader(result: type[Result]) -> Callable[[str], Result]:
    decoder = msgspec.json.Decoder(result)

    def read(data: str) -> Result:
        try:
            return decoder.decode(data)
        except UNREADABLE as error:
            raise UnexpectedReplyError(f"an event is not a {result.__name__} chunk: {error}") from error

    return read


def _read_health(reply: Reply) -> Health:
    if reply.status not in (200, 503):
        raise api_error(reply)
    try:
        details = msgspec.json.decode(reply.body, type=dict[str, Any])
    except UNREADABLE:
        details = {}
    return Health(is_ready=reply.status == 200, details=details)
