"""Python client of an OpenAI-compatible server: `Client`, `AsyncClient`, their results and their errors."""

from distllm.clients.async_client import AsyncClient
from distllm.clients.client import Client
from distllm.clients.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ClientError,
    ConnectionLostError,
    InvalidCallError,
    NotFoundError,
    NotReadyError,
    RequestTimeoutError,
    ServerError,
    ServerUnreachableError,
    ServiceUnavailableError,
    StreamError,
    TooManyRequestsError,
    UnexpectedReplyError,
)
from distllm.clients.retries import NO_RETRIES, RetryPolicy
from distllm.clients.streams import AsyncStream, Stream

__all__ = [
    "NO_RETRIES",
    "APIError",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ClientError",
    "ConnectionLostError",
    "InvalidCallError",
    "NotFoundError",
    "NotReadyError",
    "RequestTimeoutError",
    "RetryPolicy",
    "ServerError",
    "ServerUnreachableError",
    "ServiceUnavailableError",
    "Stream",
    "StreamError",
    "TooManyRequestsError",
    "UnexpectedReplyError",
]
