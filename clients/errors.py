"""What can go wrong between a client and a server, one exception for each remedy. Knows nothing of httpx."""

from typing import Any, Self

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON of the wanted shape."""


class ClientError(Exception):
    """Every exception that this package raises on purpose."""


class InvalidCallError(ClientError, ValueError):
    """What the caller gave can be no request: an address, a key or a value for which the wire has no form."""


class ServerUnreachableError(ClientError):
    """Nothing answers at `url`."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"no server answers at {url}: {reason}")
        self.url = url


class RequestTimeoutError(ClientError):
    """The server did not send the next byte within the client's time limit."""


class ConnectionLostError(ClientError):
    """The connection broke, or a stream ended before its last chunk. What had arrived was delivered."""


class UnexpectedReplyError(ClientError):
    """The server's reply is not in OpenAI's wire format; most likely the URL is another service's."""


class NotReadyError(ClientError):
    """The server did not become ready in the time allowed; the message ends with what it said last."""


class APIError(ClientError):
    """The server's error object `{message, type, param, code}`.

    `status` is None where the error arrived inside a stream that had begun with 200. `retry_after_s` is the
    reply's Retry-After, where it has one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,  # noqa: A002  (the wire's name)
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @classmethod
    def from_object(
        cls, fields: dict[str, Any], *, status: int | None = None, retry_after_s: float | None = None
    ) -> Self:
        """The exception for an error object as it came; a `code` that is a number reads as text."""
        return cls(
            _text(fields.get("message")) or "the server gave no reason",
            status=status,
            type=_text(fields.get("type")),
            param=_text(fields.get("param")),
            code=_text(fields.get("code")),
            retry_after_s=retry_after_s,
        )


class BadRequestError(APIError):
    """400, 413, 422: the request must be changed; `param` names the field."""


class AuthenticationError(APIError):
    """401, 403: the API key is missing or wrong."""


class NotFoundError(APIError):
    """404: no such model, or no such path."""


class TooManyRequestsError(APIError):
    """429: the server's queue is full; try again after `retry_after_s`."""


class ServiceUnavailableError(APIError):
    """503: the server is starting or draining."""


class ServerError(APIError):
    """Any other 5xx: the server's fault."""


class StreamError(APIError):
    """The request failed after its stream had begun. What had arrived was delivered."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    413: BadRequestError,
    422: BadRequestError,
    429: TooManyRequestsError,
    503: ServiceUnavailableError,
}


def error_class(status: int) -> type[APIError]:
    """The exception for an HTTP status that is not a success."""
    return _BY_STATUS.get(status, ServerError if status >= 500 else APIError)


def read_error_object(body: bytes | str) -> dict[str, Any] | None:
    """The error object in a JSON body or event; None where there is none."""
    try:
        error = msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except UNREADABLE:
        return None
    if error is None or isinstance(error, dict):
        return error
    return {"message": error}


def _text(value: object) -> str | None:
    return None if value is None else str(value)
