"""Deltas of a generation as OpenAI's chat.completion objects."""

from collections.abc import Iterator

from msgspec import UNSET, UnsetType

from distllm.server.answer_head import AnswerHead
from distllm.server.choice import ChoiceDelta, ScoredToken
from distllm.server.generation import Generation
from distllm.server.handlers.collect import CollectedChoice
from distllm.server.logprob_text import chat_logprobs, prompt_logprobs
from distllm.server.protocol.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessageOut,
    PromptLogprobs,
    Usage,
)
from distllm.server.tokenizer import Tokenizer


class ChatChunks:
    """One response's objects: all carry the same id, time and model."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer, head: AnswerHead) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._num_top = generation.plan.num_top_logprobs
        self._head = head

    def opening(self) -> Iterator[ChatChunk]:
        """Each choice begins with its role."""
        for choice in self._generation.choices:
            yield self._chunk(choice.index, ChatDelta(role="assistant", content=""))

    def of(self, delta: ChoiceDelta) -> Iterator[ChatChunk]:
        """A chunk of text where there is some, and an empty delta that says why a choice has ended."""
        if delta.text or delta.tokens:
            logprobs = self._logprobs(delta.tokens) if delta.tokens else None
            yield self._chunk(delta.index, ChatDelta(content=delta.text), logprobs)
        if delta.finish_reason is not None:
            yield self._chunk(delta.index, ChatDelta(), finish_reason=delta.finish_reason)

    def closing(self) -> Iterator[ChatChunk]:
        """The usage, where it was asked for."""
        if self._head.include_usage:
            yield self._with_choices([], self._generation.usage())

    def whole(self, choices: list[CollectedChoice]) -> ChatCompletion:
        """The answer in one piece."""
        return ChatCompletion(
            id=self._generation.request_id,
            object="chat.completion",
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.fingerprint,
            choices=[
                ChatChoice(
                    choice.index,
                    ChatMessageOut("assistant", choice.text),
                    self._logprobs(choice.tokens),
                    choice.finish_reason,
                )
                for choice in choices
            ],
            usage=self._generation.usage(),
            prompt_logprobs=self._prompt_logprobs(),
        )

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        logprobs: ChatLogprobs | None = None,
        finish_reason: str | None = None,
    ) -> ChatChunk:
        choice = ChatChunkChoice(index, delta, logprobs, finish_reason)
        return self._with_choices([choice], None if self._head.include_usage else UNSET)

    def _with_choices(self, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(
            id=self._generation.request_id,
            object="chat.completion.chunk",
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.fingerprint,
            choices=choices,
            usage=usage,
            x_route=self._generation.moved_to or UNSET,
        )

    def _logprobs(self, tokens: list[ScoredToken]) -> ChatLogprobs | None:
        return None if self._num_top is None else chat_logprobs(self._tokenizer, tokens, self._num_top)

    def _prompt_logprobs(self) -> PromptLogprobs | UnsetType:
        num_top = self._generation.plan.num_top_prompt_logprobs
        if num_top is None:
            return UNSET
        return prompt_logprobs(self._tokenizer, self._generation.prompt_logprobs(0), num_top)
