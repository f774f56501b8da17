"""Scored tokens in the two forms that OpenAI's endpoints give them."""

from collections.abc import Iterable, Sequence

from distllm.engine.interface import TokenLogprobs
from distllm.server.choice import ScoredToken
from distllm.server.protocol.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from distllm.server.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""What OpenAI sends for a token that cannot occur; JSON has no infinity."""


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[ScoredToken], num_top: int) -> CompletionLogprobs:
    """Legacy logprobs. Half a character is written bytes:\\x.., as OpenAI does."""
    return CompletionLogprobs(
        tokens=[legacy_token(tokenizer, token.token_id) for token in tokens],
        token_logprobs=[None if token.scores is None else _finite(token.scores.logprob) for token in tokens],
        top_logprobs=[_legacy_top(tokenizer, token.scores, num_top) for token in tokens] if num_top else None,
        text_offset=[token.offset for token in tokens],
    )


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[ScoredToken], num_top: int) -> ChatLogprobs:
    """Chat logprobs: bytes beside every token."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                *_chat_token(tokenizer, token.token_id, token.scores.logprob),
                [
                    TopLogprob(*_chat_token(tokenizer, top_id, logprob))
                    for top_id, logprob in _top(token.scores, num_top)
                ],
            )
            for token in tokens
            if token.scores is not None
        ]
    )


def prompt_logprobs(tokenizer: Tokenizer, scores: Iterable[TokenLogprobs], num_top: int) -> PromptLogprobs:
    """The scores of a prompt's tokens after the first, in vLLM's form."""
    return [None, *(_ranked(tokenizer, entry, num_top) for entry in scores)]


def _ranked(tokenizer: Tokenizer, scores: TokenLogprobs, num_top: int) -> dict[int, PromptLogprob]:
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(_top(scores, num_top), 1)}
    logprobs = {scores.token_id: scores.logprob} | dict(_top(scores, num_top))
    return {
        token_id: PromptLogprob(_finite(logprob), ranks.get(token_id), legacy_token(tokenizer, token_id))
        for token_id, logprob in logprobs.items()
    }


def legacy_token(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text, or its bytes in hexadecimal where they are not whole characters."""
    token_bytes = tokenizer.token_bytes(token_id)
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


def _legacy_top(tokenizer: Tokenizer, scores: TokenLogprobs | None, num_top: int) -> dict[str, float] | None:
    """The most likely tokens and the chosen one. Of tokens that read the same the likeliest counts."""
    if scores is None:
        return None
    top: dict[str, float] = {}
    for token_id, logprob in (*_top(scores, num_top), (scores.token_id, scores.logprob)):
        top.setdefault(legacy_token(tokenizer, token_id), _finite(logprob))
    return top


def _top(scores: TokenLogprobs, num_top: int) -> list[tuple[int, float]]:
    return list(zip(scores.top_ids[:num_top], scores.top_logprobs[:num_top], strict=True))


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
    token_bytes = tokenizer.token_bytes(token_id)
    return token_bytes.decode(errors="replace"), _finite(logprob), list(token_bytes)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
