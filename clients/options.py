"""The optional fields of a request, under the wire's names. The server checks the values."""

from collections.abc import Mapping, Sequence
from typing import TypedDict


class SamplingOptions(TypedDict, total=False):
    """What both kinds of request accept. An absent field is left to the server's default."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[str, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    seed: int | None
    n: int | None
    user: str | None


class CompletionOptions(SamplingOptions, total=False):
    best_of: int | None
    echo: bool | None
    logprobs: int | None


class ChatOptions(SamplingOptions, total=False):
    max_completion_tokens: int | None
    logprobs: bool | None
    top_logprobs: int | None


Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""The four forms of a prompt: a text, texts, token ids, lists of token ids."""
