"""What the server answers, as frozen values named as on the wire. Fields that a newer server adds are ignored."""

from typing import Any, Literal, TypedDict

import msgspec


class Message(TypedDict):
    """One turn of a conversation, as it is sent."""

    role: Literal["system", "user", "assistant"]
    content: str


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int = 0


class Logprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a completion, entry i for token i; null for a prompt's first token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class CompletionChoice(msgspec.Struct, frozen=True):
    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Completion(msgspec.Struct, frozen=True):
    """A completion, or one chunk of a streamed one: then `text` is what this chunk adds."""

    id: str
    choices: list[CompletionChoice]
    created: int = 0
    model: str = ""
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text of choice 0; empty in a chunk that carries none."""
        return next((choice.text for choice in self.choices if choice.index == 0), "")


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob] | None = None


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's turn; in a chunk, what the chunk adds to it."""

    role: str | None = None
    content: str | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    message: AnswerMessage
    index: int = 0
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    id: str
    choices: list[ChatChoice]
    created: int = 0
    model: str = ""
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The answer of choice 0."""
        return next((choice.message.content or "" for choice in self.choices if choice.index == 0), "")


class ChatChunkChoice(msgspec.Struct, frozen=True):
    delta: AnswerMessage
    index: int = 0
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """One chunk of a streamed answer."""

    id: str
    choices: list[ChatChunkChoice]
    created: int = 0
    model: str = ""
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What this chunk adds to choice 0; empty in a chunk that adds nothing."""
        return next((choice.delta.content or "" for choice in self.choices if choice.index == 0), "")


class Tokenization(msgspec.Struct, frozen=True):
    tokens: list[int]
    count: int
    max_model_len: int | None = None


class Detokenization(msgspec.Struct, frozen=True):
    prompt: str


class Model(msgspec.Struct, frozen=True):
    id: str
    created: int = 0
    owned_by: str = ""
    max_model_len: int | None = None


class ModelList(msgspec.Struct, frozen=True):
    data: list[Model]


class RoutePrediction(msgspec.Struct, frozen=True):
    """Seconds that a request is predicted to take on one route; `machine_s` counts those of every machine."""

    meets_target: bool
    queue_s: float
    ttft_s: float
    tpot_s: float
    total_s: float
    machine_s: float


class RouteReport(msgspec.Struct, frozen=True):
    """A route of the server. Without a `prediction` it cannot run the request now, as `unavailable` says."""

    route: str
    unavailable: str | None = None
    prediction: RoutePrediction | None = None
    prefill_tokens_per_s: float = 0.0
    is_measured: bool = False
    num_machines: int = 1


class RouteExplanation(msgspec.Struct, frozen=True):
    """Where a request would go and why; `route` is None where nothing takes it."""

    route: str | None
    reason: str
    prompt_tokens: int
    max_tokens: int
    routes: list[RouteReport]

    @property
    def chosen(self) -> RouteReport | None:
        """The route that the request would take."""
        return next((report for report in self.routes if report.route == self.route), None)


class Health(msgspec.Struct, frozen=True):
    """Whether the server takes requests, and what it says of itself."""

    is_ready: bool
    details: dict[str, Any]
