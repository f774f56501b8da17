"""Every error a client can meet, in OpenAI's one shape, and the one table from exception to HTTP status.

Knows nothing of routes. `error_body` is the same shape for a failure in the middle of a stream.
"""

from dataclasses import dataclass

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from distllm.engine.sampling_params import InvalidParameter
from distllm.scheduler.refusals import EngineDraining, EngineUnavailable, QueueFull

RETRY_UNAVAILABLE_S = 2.0
_LONGEST_MESSAGE = 2000
_LONGEST_PARAM = 200


def shown(text: str, longest: int = 100) -> str:
    """A client's text as an error repeats it: shortened, and only characters that UTF-8 can carry."""
    cut = text if len(text) <= longest else text[:longest] + "..."
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


class InvalidRequest(Exception):
    """The request is wrong. `param` names the field; `code` says in which way."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit into the model's context."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, param, "context_length_exceeded")


class ModelNotFound(Exception):
    """The request names a model that is not served here."""

    def __init__(self, model: str, served: tuple[str, ...]) -> None:
        names = ", ".join(repr(name) for name in served)
        super().__init__(f"The model {shown(model)!r} does not exist; this server serves {names}")
        self.param = "model"


class BodyTooLarge(Exception):
    """The body is longer than this server reads."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is longer than {limit} bytes, the most this server reads")


class UnsupportedMediaType(Exception):
    """The body is not declared as plain JSON in UTF-8; the message names the header and what it must say."""


class MalformedHttp(Exception):
    """What came is not an HTTP request."""

    def __init__(self) -> None:
        super().__init__("this is not a valid HTTP request")


class HeadTooLarge(Exception):
    """The request line and headers are longer than this server reads."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request's headers are longer than {limit} bytes, the most this server reads")


class RequestTimeout(Exception):
    """The request did not come whole in time."""

    def __init__(self) -> None:
        super().__init__("the request did not come whole in time")


class TooManyConnections(Exception):
    """Every connection that this server holds is busy."""

    def __init__(self) -> None:
        super().__init__("this server has as many open connections as it holds, all of them busy; try again later")


class InvalidApiKey(Exception):
    """The request carries no key, or one that is not accepted."""

    def __init__(self, is_missing: bool) -> None:
        super().__init__(
            "You didn't provide an API key; send it as 'Authorization: Bearer KEY'"
            if is_missing
            else "Incorrect API key provided"
        )


class StreamNotFound(Exception):
    """There is no stream of that id that this key may go on with."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"there is no stream {shown(request_id)!r} to resume: it was not begun as one, or with another key, or "
            "it ended or lost its client too long ago, or had to make room; send the request again, without "
            "Last-Event-ID"
        )
        self.param = "Last-Event-ID"


class GenerationFailed(Exception):
    """The engine could not finish an accepted request."""


class CutByShutdown(GenerationFailed):
    """The server shut down before it could finish an accepted request; another server, or a later one, can."""


class Error(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error response, and of an error frame in a stream."""

    error: Error


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How an exception looks on the wire. `code` yields to the exception's own, where it has one."""

    status: int
    type: str
    code: str | None


INVALID = "invalid_request_error"
ERROR_TABLE: dict[type[Exception], ErrorKind] = {
    InvalidRequest: ErrorKind(400, INVALID, None),
    InvalidParameter: ErrorKind(400, INVALID, "invalid_value"),
    MalformedHttp: ErrorKind(400, INVALID, "malformed_http"),
    InvalidApiKey: ErrorKind(401, INVALID, "invalid_api_key"),
    ModelNotFound: ErrorKind(404, INVALID, "model_not_found"),
    StreamNotFound: ErrorKind(404, INVALID, "stream_not_found"),
    RequestTimeout: ErrorKind(408, INVALID, "request_timeout"),
    BodyTooLarge: ErrorKind(413, INVALID, "request_too_large"),
    UnsupportedMediaType: ErrorKind(415, INVALID, "unsupported_media_type"),
    HeadTooLarge: ErrorKind(431, INVALID, "headers_too_large"),
    QueueFull: ErrorKind(429, "rate_limit_error", "rate_limit_exceeded"),
    TooManyConnections: ErrorKind(503, "service_unavailable_error", "too_many_connections"),
    EngineDraining: ErrorKind(503, "service_unavailable_error", "draining"),
    EngineUnavailable: ErrorKind(503, "service_unavailable_error", "engine_unavailable"),
    CutByShutdown: ErrorKind(503, "service_unavailable_error", "draining"),
    GenerationFailed: ErrorKind(500, "server_error", "generation_failed"),
}
_INTERNAL = ErrorKind(500, "server_error", "internal_error")
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def error_kind(error: Exception) -> ErrorKind:
    """The table's row for an exception, by its nearest class; what is not in the table is a 500."""
    if isinstance(error, HTTPException):
        kind_type = INVALID if error.status_code < 500 else "server_error"
        return ErrorKind(error.status_code, kind_type, _HTTP_CODES.get(error.status_code))
    for kind in type(error).__mro__:
        if row := ERROR_TABLE.get(kind):
            return row
    return _INTERNAL


def error_body(error: Exception) -> ErrorBody:
    """The wire's error object. An unforeseen exception is not shown to the client."""
    kind = error_kind(error)
    message = str(error)
    if isinstance(error, HTTPException):
        message = error.detail
    elif kind is _INTERNAL:
        message = "the server failed on this request; its log has the reason under this response's x-request-id"
    param = getattr(error, "param", None) or getattr(error, "field", None)
    return ErrorBody(
        Error(
            shown(message, _LONGEST_MESSAGE),
            kind.type,
            None if param is None else shown(param, _LONGEST_PARAM),
            getattr(error, "code", None) or kind.code,
        )
    )


def error_response(error: Exception) -> Response:
    """The whole response for an exception, with Retry-After where trying again makes sense."""
    return Response(
        msgspec.json.encode(error_body(error)),
        status_code=error_kind(error).status,
        headers=_headers(error),
        media_type="application/json",
    )


async def handle_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of its own exceptions: no such route, no such method."""
    if isinstance(error, HTTPException):
        reason = f"{error.detail}: {request.method} {shown(request.url.path)}"
        error = HTTPException(error.status_code, reason, error.headers)
    return error_response(error)


def _headers(error: Exception) -> dict[str, str]:
    match error:
        case QueueFull(retry_after_s=seconds):
            return {"Retry-After": str(max(1, round(seconds)))}
        case EngineDraining() | EngineUnavailable() | TooManyConnections() | CutByShutdown():
            return {"Retry-After": str(round(RETRY_UNAVAILABLE_S))}
        case InvalidApiKey():
            return {"WWW-Authenticate": "Bearer"}
        case BodyTooLarge():
            return {"Connection": "close"}  # the rest of the body is not read
        case HTTPException(headers=headers) if headers:
            return dict(headers)
        case _:
            return {}
