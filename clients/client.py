"""The client for plain code: every call blocks."""

import time
from collections.abc import Iterable, Mapping
from itertools import count
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from distllm.clients import calls
from distllm.clients.calls import Call, Reply, StreamCall, api_error, first_model
from distllm.clients.errors import ClientError, InvalidCallError
from distllm.clients.options import ChatOptions, CompletionOptions, Prompt
from distllm.clients.readiness import Readiness
from distllm.clients.results import (
    ChatChunk,
    ChatCompletion,
    Completion,
    Detokenization,
    Health,
    Message,
    Model,
    RouteExplanation,
    Tokenization,
)
from distllm.clients.resuming import ASK, Resumer
from distllm.clients.retries import NO_RETRIES, RetryPolicy
from distllm.clients.streams import Chunk, ChunkReader, Stream
from distllm.clients.transport import DEFAULT_URL, Connection

Result = TypeVar("Result")


class Client:
    """A connection pool to one server. Safe for several threads. Close it, or use it as a context manager.

    `model` None means the first model that the server lists. Everything here raises ClientError: APIError where the
    server refused, InvalidCallError where nothing could be sent, its other kinds where no answer came. Refusals by
    429 and 503 are retried by `retries`, which also says whether streams that break are gone on with.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        retries: RetryPolicy | None = None,
    ) -> None:
        self._connection = Connection(base_url, api_key, timeout_s)
        self._retries = retries or RetryPolicy()
        self._model = model
        self._http = httpx.Client(
            base_url=self._connection.url,
            headers=self._connection.headers,
            timeout=self._connection.timeout,
            trust_env=self._connection.uses_proxies,
        )
        within_s = self._retries.resume_within_s
        self._resumer = None if within_s is None else Resumer(self._http, self._connection, within_s)

    @property
    def base_url(self) -> str:
        return str(self._connection.url)

    def model(self) -> str:
        """The model's name; asks the server the first time where none was given."""
        if self._model is None:
            self._model = first_model(self.models())
        return self._model

    def complete(self, prompt: Prompt, **options: Unpack[CompletionOptions]) -> Completion:
        return self._send(calls.complete(prompt, self.model(), options))

    def complete_stream(
        self, prompt: Prompt, *, include_usage: bool = False, **options: Unpack[CompletionOptions]
    ) -> Stream[Completion]:
        """Chunks of the completion. With `include_usage` one more comes last: usage, and no choices."""
        return self._open(calls.complete_stream(prompt, self.model(), include_usage, options))

    def chat(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> ChatCompletion:
        return self._send(calls.chat(messages, self.model(), options))

    def chat_stream(
        self, messages: Iterable[Message], *, include_usage: bool = False, **options: Unpack[ChatOptions]
    ) -> Stream[ChatChunk]:
        """Chunks of the answer. With `include_usage` one more comes last: usage, and no choices."""
        return self._open(calls.chat_stream(messages, self.model(), include_usage, options))

    def explain_route(self, prompt: Prompt, **options: Unpack[CompletionOptions]) -> RouteExplanation:
        """Where a completion would go and why; nothing is generated. Servers of others raise NotFoundError."""
        return self._send(calls.explain_route(prompt, self.model(), options))

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> Tokenization:
        return self._send(calls.tokenize(text, self.model(), add_special_tokens))

    def detokenize(self, tokens: Iterable[int]) -> Detokenization:
        return self._send(calls.detokenize(tokens, self.model()))

    def models(self) -> list[Model]:
        return self._send(calls.models()).data

    def health(self) -> Health:
        """Whether the server takes requests now."""
        return self._send(calls.health())

    def wait_until_ready(self, timeout_s: float = 120.0) -> Health:
        """Wait for a server that is starting, even one that does not listen yet. Raises NotReadyError."""
        readiness = Readiness(timeout_s)
        while True:
            seen: Health | ClientError
            try:
                seen = self.health()
                if seen.is_ready:
                    return seen
            except ClientError as error:
                seen = error
            time.sleep(readiness.delay_s(seen))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: Call[Result]) -> Result:
        policy = self._retries if call.is_repeatable else NO_RETRIES
        response = self._exchange(call.method, call.path, call.body, policy)
        with self._connection.errors():
            return call.read(Reply(response.status_code, response.headers, response.read()))

    def _open(self, call: StreamCall[Chunk]) -> Stream[Chunk]:
        headers = None if self._resumer is None else ASK
        response = self._exchange("POST", call.path, call.body, self._retries, headers)
        if not response.is_success:
            raise api_error(Reply(response.status_code, response.headers, response.content))
        return Stream(response, self._connection, ChunkReader(call.read_event), self._resumer)

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        policy: RetryPolicy,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """The reply after which no retry is due. The body of a success is still unread."""
        if self._http.is_closed:
            raise InvalidCallError("the client has been closed")
        request = self._http.build_request(method, path, content=body, headers=headers)
        for num_retries in count():
            with self._connection.errors():
                response = self._http.send(request, stream=True)
                if not response.is_success:
                    response.read()
            delay_s = policy.delay_s(response.status_code, response.headers, num_retries)
            if delay_s is None:
                break
            time.sleep(delay_s)
        return response
