"""Answers on the wire: OpenAI's objects as msgspec Structs. UNSET fields are left out, None is null."""

import msgspec
from msgspec import UNSET, UnsetType

from distllm.engine.pipeline.placement.routing import Route


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """`cached_tokens` were served by prefix hits."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a whole request; every sampled sequence counts, also those best_of drops."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Legacy logprobs: four lists side by side. The first prompt token has null for both probabilities."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, frozen=True):
    """A token in the place of a prompt token. `rank` counts from 1; null where it is below those asked for."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]
"""vLLM's form: for each prompt token, itself and the likeliest by token id; null for the first."""


class CompletionChoice(msgspec.Struct, frozen=True):
    """One text. `finish_reason` is null in a stream until the choice has ended."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True):
    """A whole completion, or one chunk of its stream. `x_route` is where it goes on, once it was moved there."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    x_route: Route | UnsetType = UNSET


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer with its probability and its rivals."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Chat logprobs."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatMessageOut(msgspec.Struct, frozen=True):
    """The assistant's message."""

    role: str
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: ChatMessageOut
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(msgspec.Struct, frozen=True):
    """A whole chat completion."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """One answer's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatChunk(msgspec.Struct, frozen=True):
    """One chunk of a chat stream. `x_route` is where it goes on, once it was moved there."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    x_route: Route | UnsetType = UNSET


class ModelCard(msgspec.Struct, frozen=True):
    """A served model. `max_model_len` is null while the model is still being loaded."""

    id: str
    created: int
    max_model_len: int | None
    object: str = "model"
    owned_by: str = "distllm"


class ModelList(msgspec.Struct, frozen=True):
    """Every served name."""

    data: list[ModelCard]
    object: str = "list"
