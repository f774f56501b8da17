"""Which requests an engine takes at all. Pure: looks at the request and the engine's limits, changes nothing."""

from dataclasses import dataclass

from distllm.engine.interface import ExecutorInfo
from distllm.scheduler.messages import EngineRequest


class RequestRefused(ValueError):
    """The engine cannot run the request. The message says why and what to change."""


class PromptTooLong(RequestRefused):
    """The prompt leaves no room in the model's context."""


class PoolTooSmall(RequestRefused):
    """The KV pool could not hold the request even if it were alone."""


class InvalidTokens(RequestRefused):
    """A prompt is empty or has ids that the model does not know."""


class InvalidSequences(RequestRefused):
    """The list of sequences is empty or names one twice."""


class DuplicateRequest(RequestRefused):
    """A request of that id is live."""


class TooManyRequests(RequestRefused):
    """As many requests are live as the engine takes."""


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """The longest sequence, in tokens: by the model's context, and by the KV pool when nothing else runs."""

    model_len: int
    pool_tokens: int
    vocab_size: int

    @classmethod
    def of(cls, info: ExecutorInfo) -> "SequenceLimits":
        return cls(info.max_model_len, info.num_blocks * info.block_size, info.vocab_size)

    @property
    def max_len(self) -> int:
        """The last token of a sequence needs no KV."""
        return min(self.model_len, self.pool_tokens + 1)

    def check(self, request: EngineRequest) -> None:
        """Raises a RequestRefused for what can never run."""
        self._check_sequences(request)
        self._check_tokens(request)
        self._check_context(request)
        self._check_pool(request)

    def _check_sequences(self, request: EngineRequest) -> None:
        indices = {start.index for start in request.sequences}
        if not indices or len(indices) < len(request.sequences) or min(indices) < 0:
            raise InvalidSequences("sequences must be at least one, each with an index of its own from 0 up")

    def _check_tokens(self, request: EngineRequest) -> None:
        if not request.prompt_ids:
            raise InvalidTokens("the prompt has no tokens; it must have at least one")
        for token_ids in (request.prompt_ids, *(start.output_ids for start in request.sequences)):
            if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
                raise InvalidTokens(f"token ids must be from 0 to {self.vocab_size - 1}, the model's vocabulary")

    def _check_context(self, request: EngineRequest) -> None:
        num_prompt_tokens = len(request.prompt_ids)
        limit = self.model_len if request.params.max_tokens == 0 else self.model_len - 1
        if num_prompt_tokens > limit:
            room = "" if limit == self.model_len else " and at least one more to generate"
            raise PromptTooLong(f"prompt has {num_prompt_tokens} tokens; this model accepts {limit}{room}")
        if _num_known_tokens(request) > self.model_len:
            raise PromptTooLong(f"prompt and output exceed the {self.model_len} tokens that this model accepts")

    def _check_pool(self, request: EngineRequest) -> None:
        """Without max_tokens a sequence may end where the pool does; with it, all of it must fit."""
        asked_len = min(len(request.prompt_ids) + (request.params.max_tokens or 0), self.model_len)
        num_kv_tokens = max(_num_known_tokens(request), asked_len - 1)
        if num_kv_tokens > self.pool_tokens:
            raise PoolTooSmall(
                f"prompt and max_tokens need KV for {num_kv_tokens} tokens; the cache holds {self.pool_tokens}: "
                "ask for fewer, or give the server more memory for KV"
            )


def _num_known_tokens(request: EngineRequest) -> int:
    return len(request.prompt_ids) + max(len(start.output_ids) for start in request.sequences)
