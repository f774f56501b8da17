"""From a validated request body to what has to be generated: prompts as token ids, resolved parameters."""

from dataclasses import dataclass, replace

from distllm.engine.interface import ExecutorInfo
from distllm.engine.sampling_params import SamplingParams
from distllm.server.errors import ContextLengthExceeded, InvalidRequest, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPlan:
    """One prompt. `text` is what the client sent, None when it sent token ids. `params.max_tokens` is resolved.

    `may_shorten` says that max_tokens is a default, which yields where the engine that is chosen has less room.
    """

    token_ids: list[int]
    text: str | None
    params: SamplingParams
    may_shorten: bool = False

    def within(self, max_model_len: int) -> "PromptPlan":
        """For an engine that takes sequences of so many tokens; as it is where that would not do."""
        room = max_model_len - len(self.token_ids)
        if not self.may_shorten or room < 1 or (self.params.max_tokens or 0) <= room:
            return self
        return replace(self, params=replace(self.params, max_tokens=room))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationPlan:
    """Everything a request asks for. Of `num_sampled` sequences a prompt the best `n` are returned.

    `num_top_logprobs` None means that the client asked for no logprobs, whatever `params` compute for ranking;
    `num_top_prompt_logprobs` the same of the prompt's.
    """

    prompts: tuple[PromptPlan, ...]
    n: int = 1
    num_sampled: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    num_top_logprobs: int | None = None
    num_top_prompt_logprobs: int | None = None
    priority: int = 0

    @property
    def is_ranked(self) -> bool:
        return self.num_sampled > self.n

    def within(self, max_model_len: int) -> "GenerationPlan":
        """For an engine that takes sequences of so many tokens."""
        return replace(self, prompts=tuple(prompt.within(max_model_len) for prompt in self.prompts))


@dataclass(frozen=True, slots=True)
class Limits:
    """What fits: token ids below `vocab_size`, prompt and answer within `max_model_len`."""

    max_model_len: int
    vocab_size: int

    @classmethod
    def of(cls, info: ExecutorInfo) -> "Limits":
        return cls(min(info.max_model_len, info.num_blocks * info.block_size), info.vocab_size)

    def check_token_ids(self, token_ids: list[int] | tuple[int, ...], field: str) -> None:
        """Raises InvalidRequest for an id that the model does not have."""
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < self.vocab_size)
            raise InvalidRequest(
                f"{field} holds token id {shown(str(wrong))}; this model has ids 0 to {self.vocab_size - 1}", field
            )

    def plan_prompt(
        self, token_ids: list[int], text: str | None, params: SamplingParams, field: str, max_field: str | None
    ) -> PromptPlan:
        """Resolve max_tokens for a prompt. Raises InvalidRequest or ContextLengthExceeded.

        `field` names the prompt, `max_field` what set max_tokens; None stands for a default, which yields to the
        room that the prompt leaves.
        """
        room = self.max_model_len - len(token_ids)
        asked = params.max_tokens
        if room < 0 or (room == 0 and asked != 0):
            raise prompt_too_long(self.max_model_len, str(len(token_ids)), field)
        self.check_token_ids(token_ids, field)
        if max_field is not None and asked is not None and asked > room:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{len(token_ids) + asked} tokens ({len(token_ids)} in the prompt, {asked} in the completion). "
                f"Please shorten the prompt or lower {max_field} to {room}.",
                max_field,
            )
        resolved = params if asked is not None and asked <= room else replace(params, max_tokens=room)
        return PromptPlan(token_ids=token_ids, text=text, params=resolved, may_shorten=max_field is None)

    def check_params(self, params: SamplingParams) -> None:
        """Raises InvalidRequest when a parameter names a token that the model does not have."""
        self.check_token_ids(params.stop_token_ids, "stop_token_ids")
        self.check_token_ids(tuple(params.logit_bias), "logit_bias")


def prompt_too_long(max_model_len: int, count: str, field: str) -> ContextLengthExceeded:
    """The error for a prompt that leaves no room; `count` words how many tokens it has."""
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt has {count} tokens. "
        "Please shorten it.",
        field,
    )


def check_num_choices(num_prompts: int, num_sampled: int, max_choices: int, max_live: int) -> None:
    """Raises InvalidRequest when one request asks for more sequences than the server takes at once, or for more
    prompts than it could ever have live."""
    if num_prompts * num_sampled > max_choices:
        raise InvalidRequest(
            f"{num_prompts} prompts with {num_sampled} choices each are {num_prompts * num_sampled} sequences; "
            f"one request may ask for {max_choices}",
            "prompt" if num_prompts > 1 else "n",
        )
    most_prompts = -(-max_live // num_sampled)
    if num_prompts > most_prompts:
        raise InvalidRequest(
            f"{num_prompts} prompts with {num_sampled} choices each are more than this server holds at once; "
            f"send at most {most_prompts} prompts in one request",
            "prompt",
        )
