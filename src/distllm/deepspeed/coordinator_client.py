"""CoordinatorClient: a server of OpenAI's API, such as the coordinator of a cluster, that continues texts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Unpack

from distllm.clients import (
    NO_RETRIES,
    AuthenticationError,
    BadRequestError,
    Client,
    ClientError,
    InvalidCallError,
    NotFoundError,
    RequestTimeoutError,
    RetryPolicy,
    ServerUnreachableError,
    ServiceUnavailableError,
    Stream,
    TooManyRequestsError,
)
from distllm.clients.results import Completion, RouteExplanation
from distllm.deepspeed.generation_options import GenerationOptions, completion_options, in_our_names
from distllm.deepspeed.observed_latency import ObservedLatency
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.text_generator import TextGenerator
from distllm.engine.pipeline.placement.routing import RouteState
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.errors import GenerationFailed, InvalidRequest

_EXPLAIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a server would do for a call. Its tokenizer counts `prompt_tokens`; None where it does not say."""

    state: RouteState
    prompt_tokens: int | None = None


class CoordinatorClient(TextGenerator):
    """`generate` and `stream` run on the server at `url`; `api_key` is the one that it asks for.

    Any server of OpenAI's API will do. `model` None is the first that it lists. A server that is silent for
    `timeout_s` is given up; one that refuses for now is tried again by `retries`. `latency` is what answers have
    taken. Raises InvalidOption for a wrong url or key; afterwards, as an engine here would, InvalidRequest,
    EngineUnavailable where the server takes no requests, and GenerationFailed.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 600.0,
        retries: RetryPolicy | None = None,
    ) -> None:
        explain_s = min(timeout_s, _EXPLAIN_TIMEOUT_S)
        try:
            self._client = Client(url, model=model, api_key=api_key, timeout_s=timeout_s, retries=retries)
            self._asking = Client(url, model=model, api_key=api_key, timeout_s=explain_s, retries=NO_RETRIES)
        except InvalidCallError as error:
            option = "api_key" if "API key" in str(error) else "url"
            raise InvalidOption(option, f"cannot be used: {error}") from None
        self.latency = ObservedLatency()

    @property
    def url(self) -> str:
        return self._client.base_url

    def explain(self, prompt: str | list[str], **options: Unpack[GenerationOptions]) -> RouteExplanation | None:
        """What the server predicts of `generate`, and which of its routes it would take.

        None where it has no such endpoint. Raises as `generate`.
        """
        fields = completion_options(options)
        with _our_errors():
            try:
                return self._asking.explain_route(prompt, **fields)
            except NotFoundError as error:
                if error.code == "model_not_found":
                    raise
                return None

    def prospect(self, texts: list[str], options: GenerationOptions) -> Prospect:
        """What is to be expected of the server: what it says itself, else what its answers have taken so far."""
        try:
            explanation = self.explain(texts, **options)
        except EngineUnavailable as unavailable:
            return Prospect(self.latency.route_state(unavailable.reason))
        if explanation is None:
            return Prospect(self.latency.route_state())
        return Prospect(self._explained(explanation), explanation.prompt_tokens)

    def _explained(self, explanation: RouteExplanation) -> RouteState:
        if (chosen := explanation.chosen) is None:
            return self.latency.route_state(explanation.reason)
        if chosen.prediction is None:  # it takes the request and has it wait
            return self.latency.route_state(chosen.unavailable)
        return RouteState(
            "pipeline",
            prefill_tokens_per_s=chosen.prefill_tokens_per_s,
            tpot_s=chosen.prediction.tpot_s,
            queue_s=chosen.prediction.queue_s,
            num_machines=chosen.num_machines,
        )

    def close(self) -> None:
        self._client.close()
        self._asking.close()

    def _answers(self, texts: list[str], options: GenerationOptions) -> list[str]:
        if not texts:
            return []
        fields, begun_s = completion_options(options), time.perf_counter()
        with _our_errors():
            completion = self._client.complete(texts, **fields)
        if completion.usage is not None:
            self.latency.note_whole(time.perf_counter() - begun_s, completion.usage.completion_tokens / len(texts))
        answers = {choice.index: choice.text for choice in completion.choices}
        return [answers.get(number, "") for number in range(len(texts))]

    def _pieces(self, text: str, options: GenerationOptions) -> Iterator[str]:
        fields, begun_s = completion_options(options), time.perf_counter()
        with _our_errors():
            stream = self._client.complete_stream(text, **fields)
        return self._read(stream, begun_s)

    def _read(self, stream: Stream[Completion], begun_s: float) -> Iterator[str]:
        """Closing the iterator closes the stream, which ends the request."""
        arrivals_s: list[float] = []
        with stream, _our_errors():
            for chunk in stream:
                if chunk.text:
                    arrivals_s.append(time.perf_counter() - begun_s)
                    yield chunk.text
        self.latency.note_pieces(arrivals_s)


@contextmanager
def _our_errors() -> Iterator[None]:
    """A client's errors as those of an engine here."""
    try:
        yield
    except BadRequestError as error:
        raise InvalidRequest(in_our_names(error.message), in_our_names(error.param or "prompts")) from None
    except AuthenticationError as error:
        raise InvalidOption("api_key", f"is refused by the server: {error}") from None
    except NotFoundError as error:
        raise InvalidOption("model", f"is refused by the server: {error}") from None
    except (ServerUnreachableError, ServiceUnavailableError, TooManyRequestsError, RequestTimeoutError) as error:
        raise EngineUnavailable(str(error)) from None
    except ClientError as error:
        raise GenerationFailed(str(error)) from None
