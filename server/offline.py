"""One prompt of an offline batch: submitted to the engine, and collected until all its sequences have ended."""

import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from distllm.engine.interface import TokenLogprobs
from distllm.scheduler.messages import EngineRequest, SequenceOutput, SequenceStart
from distllm.server.choice import Choice
from distllm.server.errors import GenerationFailed
from distllm.server.generation_plan import GenerationPlan, PromptPlan
from distllm.server.ports import Engine
from distllm.server.prompt_text import PromptText, read_prompt
from distllm.server.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled continuation. `token_ids` include the eos or stop token that ended it, `text` does not.

    `finish_reason` is stop, length or error; with error, the rest is what was there before `error` happened.
    `logprobs` run beside `token_ids` where the parameters ask for them.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """What became of one prompt. `prompt` is its text, None where token ids were given or messages rendered.

    `prompt_logprobs` belong to the prompt's tokens after the first. `num_cached_tokens` of them were prefix hits.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    completions: list[Completion]
    prompt_logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """The text of the first completion."""
        return self.completions[0].text


async def complete(
    engine: Engine, tokenizer: Tokenizer, plan: GenerationPlan, on_tokens: Callable[[int], None]
) -> PromptResult:
    """Run a plan of one prompt. Raises what Engine.submit raises; `on_tokens` hears how many tokens came."""
    (prompt,) = plan.prompts
    prompt_text = await read_prompt(tokenizer, plan, prompt)
    sequences = [_Sequence(index, plan, prompt, prompt_text, tokenizer) for index in range(plan.num_sampled)]
    prompt_logprobs, num_cached_tokens = None, 0
    async with engine.submit(engine_request(plan, prompt)) as stream:
        async for output in stream:
            on_tokens(len(output.token_ids))
            num_cached_tokens = output.num_cached_tokens or num_cached_tokens
            prompt_logprobs = output.prompt_logprobs or prompt_logprobs
            sequence = sequences[output.index]
            if sequence.accept(output) and output.finish_reason is None:
                stream.abort_sequence(output.index)
    return PromptResult(
        prompt=prompt.text,
        prompt_token_ids=prompt.token_ids,
        completions=[sequence.completion() for sequence in sequences],
        prompt_logprobs=prompt_logprobs,
        num_cached_tokens=num_cached_tokens,
    )


def engine_request(plan: GenerationPlan, prompt: PromptPlan) -> EngineRequest:
    """What the engine is asked for one prompt of a plan."""
    return EngineRequest(
        request_id=f"offline-{uuid.uuid4().hex}",
        prompt_ids=prompt.token_ids,
        params=prompt.params,
        seed=secrets.randbits(63) if plan.seed is None else plan.seed,
        sequences=[SequenceStart(index) for index in range(plan.num_sampled)],
        priority=plan.priority,
        arrival_s=time.time(),
    )


class _Sequence:
    """Gathers the outputs of one sequence."""

    def __init__(
        self, index: int, plan: GenerationPlan, prompt: PromptPlan, prompt_text: PromptText, tokenizer: Tokenizer
    ) -> None:
        self._choice = Choice(index, plan, prompt, prompt_text, tokenizer)
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | None = None if prompt.params.logprobs is None else []
        self._finish_reason: str | None = None
        self._error: str | None = None

    def accept(self, output: SequenceOutput) -> bool:
        """Take the next tokens, up to where a stop string ends the text. Whether these ended it."""
        if self._finish_reason is not None:
            return False
        num_before = self._choice.num_tokens
        try:
            delta = self._choice.accept(output)
        except GenerationFailed as error:
            self._finish_reason, self._error = "error", str(error)
            return True
        num_new = self._choice.num_tokens - num_before
        self._pieces.append(delta.text)
        self._token_ids += output.token_ids[:num_new]
        if self._logprobs is not None:
            self._logprobs += (output.logprobs or [])[:num_new]
        self._finish_reason = delta.finish_reason
        return self._finish_reason is not None

    def completion(self) -> Completion:
        """The whole of it, once it has finished."""
        assert self._finish_reason is not None
        return Completion(
            index=self._choice.index,
            text="".join(self._pieces),
            token_ids=self._token_ids,
            finish_reason=self._finish_reason,
            logprobs=self._logprobs,
            error=self._error,
        )
