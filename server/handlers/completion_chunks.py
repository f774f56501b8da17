"""Deltas of a generation as OpenAI's text_completion objects."""

from collections.abc import Iterator

from msgspec import UNSET, UnsetType

from distllm.server.answer_head import AnswerHead
from distllm.server.choice import ChoiceDelta, ScoredToken
from distllm.server.generation import Generation
from distllm.server.handlers.collect import CollectedChoice
from distllm.server.logprob_text import completion_logprobs, prompt_logprobs
from distllm.server.protocol.responses import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptLogprobs,
    Usage,
)
from distllm.server.tokenizer import Tokenizer


class CompletionChunks:
    """One response's objects: all carry the same id, time and model."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer, head: AnswerHead) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._num_top = generation.plan.num_top_logprobs
        self._head = head

    def opening(self) -> Iterator[Completion]:
        """A completion's stream begins with its text."""
        return iter(())

    def of(self, delta: ChoiceDelta) -> Iterator[Completion]:
        """A chunk of text where there is some, and one of "" that says why a choice has ended."""
        if delta.text or delta.tokens:
            logprobs = self._logprobs(delta.tokens) if delta.tokens else None
            yield self._chunk(CompletionChoice(delta.text, delta.index, logprobs, None))
        if delta.finish_reason is not None:
            yield self._chunk(CompletionChoice("", delta.index, None, delta.finish_reason))

    def closing(self) -> Iterator[Completion]:
        """The usage, where it was asked for."""
        if self._head.include_usage:
            yield self._completion([], self._generation.usage())

    def whole(self, choices: list[CollectedChoice]) -> Completion:
        """The answer in one piece."""
        return self._completion(
            [
                CompletionChoice(
                    choice.text,
                    choice.index,
                    self._logprobs(choice.tokens),
                    choice.finish_reason,
                    self._prompt_logprobs(choice.index),
                )
                for choice in choices
            ],
            self._generation.usage(),
        )

    def _chunk(self, choice: CompletionChoice) -> Completion:
        return self._completion([choice], None if self._head.include_usage else UNSET)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(
            id=self._generation.request_id,
            object="text_completion",
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.fingerprint,
            choices=choices,
            usage=usage,
            x_route=self._generation.moved_to or UNSET,
        )

    def _logprobs(self, tokens: list[ScoredToken]) -> CompletionLogprobs | None:
        if self._num_top is None:
            return None
        return completion_logprobs(self._tokenizer, tokens, self._num_top)

    def _prompt_logprobs(self, index: int) -> PromptLogprobs | UnsetType:
        num_top = self._generation.plan.num_top_prompt_logprobs
        if num_top is None:
            return UNSET
        return prompt_logprobs(self._tokenizer, self._generation.prompt_logprobs(index), num_top)
