"""Offline batches: the engine of the server, without the server.

with LLM("org/name") as llm:
    results = llm.generate(["Once upon a time", "The fox"], SamplingParams(max_tokens=40))
    print(results[0].text)
"""

import logging
import weakref
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast

from distllm.engine.interface import ExecutorInfo
from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.client import EngineClient
from distllm.scheduler.refusals import EngineUnavailable
from distllm.scheduler.stats import EngineStats
from distllm.server.batch_bar import BatchBar
from distllm.server.config import InvalidSettings, Settings, fields
from distllm.server.config_sources import load_settings
from distllm.server.errors import InvalidRequest
from distllm.server.generation_plan import GenerationPlan, Limits
from distllm.server.launch import find_checkpoint, load_text_side, start_message
from distllm.server.loading_bar import LoadingBar
from distllm.server.loop_thread import LoopThread
from distllm.server.offline import PromptResult
from distllm.server.offline_batch import (
    EncodedPrompt,
    Message,
    encode_conversations,
    encode_prompts,
    plan_batch,
    run_batch,
)
from distllm.server.offline_stream import stream_text
from distllm.server.protocol.completions import DEFAULT_MAX_TOKENS
from distllm.server.protocol.fields import parse_prompts, parse_stop

Prompts = str | list[str] | list[int] | list[list[int]]
Conversations = list[Message] | list[list[Message]]
Params = SamplingParams | Sequence[SamplingParams]

_SECTIONS = ("model", "scheduler", "engine")


class LLM:
    """A model in an engine process of its own. Close it, or use it as a context manager.

    `model` is a checkpoint directory or a hub name; None is the embedded model. `options` are the settings of
    `distllm serve` for model, scheduler and engine, by name: dtype="float32", max_num_seqs=16. `injection_policy`
    says how layers are divided over ranks, as EngineConfig has it. Raises InvalidSettings for a wrong option,
    ModelNotFound, CheckpointError or TokenizerError for a model that cannot be read, and EngineUnavailable, with
    the reason, for one that cannot be loaded.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        injection_policy: Mapping[str, tuple[str, ...]] | None = None,
        **options: Any,
    ) -> None:
        settings = offline_settings(model, options)
        checkpoint = find_checkpoint(settings)
        bar = LoadingBar()
        self._max_live = settings.scheduler.max_num_seqs + settings.scheduler.max_waiting
        self._engine = EngineClient(
            start_message(settings, checkpoint, injection_policy),
            bar,
            step_timeout_s=settings.engine.step_timeout_s,
        )
        self._thread = LoopThread("distllm-offline")
        self._finalizer = weakref.finalize(self, _shut_down, self._thread, self._engine)
        try:
            self._thread.run(self._engine.start())
            self._tokenizer, self._defaults = load_text_side(settings, checkpoint)
            self._thread.run(self._engine.wait_ready())
        except BaseException:
            self.close()
            raise
        finally:
            bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine. Does nothing the second time, nor in a forked child of the process that started it."""
        self._finalizer()

    @property
    def info(self) -> ExecutorInfo:
        """What the engine turned out to be: device, dtype, kernels, KV blocks, longest sequence."""
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        """The engine's figures after its latest step."""
        return self._engine.stats

    @property
    def default_params(self) -> SamplingParams:
        """The sampling that the checkpoint recommends; where it sets no length, to the end of the context."""
        recommended = self._defaults
        return SamplingParams(
            max_tokens=recommended.max_new_tokens,
            temperature=recommended.temperature,
            top_p=recommended.top_p,
            top_k=recommended.top_k,
            min_p=recommended.min_p,
            repetition_penalty=recommended.repetition_penalty,
        )

    def count_tokens(self, prompts: Prompts) -> int:
        """Tokens of all prompts together, as `generate` would have them. Raises InvalidRequest."""
        encoded = self._thread.run(encode_prompts(self._tokenizer, parse_prompts(prompts)))
        return sum(len(prompt.token_ids) for prompt in encoded)

    def generate(
        self,
        prompts: Prompts,
        sampling_params: Params | None = None,
        *,
        n: int = 1,
        stop: str | Sequence[str] = (),
        use_tqdm: bool = True,
    ) -> list[PromptResult]:
        """Continue prompts, given as texts or token ids: one result for each, in their order.

        `sampling_params` are for all prompts or one for each; None is `default_params` with 16 tokens. `n`
        sequences are sampled for each prompt; their text ends before any of up to 4 `stop` strings. Raises
        InvalidRequest, naming the prompt, before anything runs, and EngineUnavailable after `close` or a fork.
        """
        self._check_open()
        if not isinstance(prompts, str | list):
            raise InvalidRequest("prompts must be a text, texts, token ids or lists of token ids", "prompts")
        if not prompts and isinstance(prompts, list):
            return []
        max_tokens = self._defaults.max_new_tokens or DEFAULT_MAX_TOKENS
        default = replace(self.default_params, max_tokens=max_tokens)
        encoded = self._thread.run(encode_prompts(self._tokenizer, parse_prompts(prompts)))
        return self._run(encoded, sampling_params, default, n, stop, use_tqdm)

    def chat(
        self,
        messages: Conversations,
        sampling_params: Params | None = None,
        *,
        n: int = 1,
        stop: str | Sequence[str] = (),
        chat_template_kwargs: dict[str, Any] | None = None,
        use_tqdm: bool = True,
    ) -> list[PromptResult]:
        """Answer one conversation or several, each a list of messages {"role": ..., "content": ...}.

        As `generate` otherwise; without parameters an answer runs to its own end. Raises NoChatTemplate for a model
        that has none.
        """
        self._check_open()
        if not isinstance(messages, list):
            raise InvalidRequest("messages must be a list of messages, or a list of conversations", "messages")
        if not messages:
            return []
        conversations = cast(list[list[Message]], messages if isinstance(messages[0], list) else [messages])
        encoded = self._thread.run(encode_conversations(self._tokenizer, conversations, chat_template_kwargs or {}))
        return self._run(encoded, sampling_params, self.default_params, n, stop, use_tqdm)

    def stream(
        self,
        prompt: str | list[int],
        sampling_params: SamplingParams | None = None,
        *,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """Continue one prompt, its text in pieces as they come. Raises as `generate`, before anything runs.

        Leaving the iterator ends the request.
        """
        self._check_open()
        encoded = self._thread.run(encode_prompts(self._tokenizer, parse_prompts(prompt)))
        default = replace(self.default_params, max_tokens=self._defaults.max_new_tokens or DEFAULT_MAX_TOKENS)
        plans = self._plan(encoded, sampling_params, default, 1, stop)
        if len(plans) != 1:
            raise InvalidRequest("stream takes one prompt; start one stream for each", "prompt")
        return self._iterate(stream_text(self._engine, self._tokenizer, plans[0]))

    def _iterate(self, pieces: AsyncGenerator[str, None]) -> Iterator[str]:
        async def advance() -> str | None:
            return await anext(pieces, None)

        try:
            self._check_open()
            while (piece := self._thread.run(advance())) is not None:
                yield piece
                self._check_open()
        finally:
            if self._finalizer.alive and self._thread.is_here:
                self._thread.run(pieces.aclose())

    def _check_open(self) -> None:
        if not self._thread.is_here:
            owner = f"process {self._thread.pid}, which started it"
            raise EngineUnavailable(f"this engine belongs to {owner}, not to a fork of it: start another here")
        if not self._finalizer.alive:
            raise EngineUnavailable("this LLM has been closed")

    def _run(
        self,
        prompts: list[EncodedPrompt],
        asked: Params | None,
        default: SamplingParams,
        n: int,
        stop: str | Sequence[str],
        use_tqdm: bool,
    ) -> list[PromptResult]:
        plans = self._plan(prompts, asked, default, n, stop)
        with BatchBar(len(plans), use_tqdm) as bar:
            return self._thread.run(run_batch(self._engine, self._tokenizer, plans, self._max_live, bar))

    def _plan(
        self,
        prompts: list[EncodedPrompt],
        asked: Params | None,
        default: SamplingParams,
        n: int,
        stop: str | Sequence[str],
    ) -> list[GenerationPlan]:
        params, are_defaults = (default, True) if asked is None else (asked, False)
        stops = parse_stop(list(stop) if isinstance(stop, tuple) else stop)
        limits = Limits.of(self._engine.info)
        return plan_batch(prompts, params, self._defaults.eos_token_ids, limits, n, stops, are_defaults)


def offline_settings(model: str | None, options: dict[str, Any]) -> Settings:
    """Settings from options, over those of the environment. Raises InvalidSettings."""
    known = [name for name, (section, _) in fields().items() if section in _SECTIONS and name != "model"]
    for name in options:
        if name not in known:
            raise InvalidSettings(f"LLM has no option {name!r}; it has {', '.join(known)}")
    given = {name: value for name, value in options.items() if value is not None}
    flags = {"log_level": _log_level(), **({"model": model} if model else {}), **given}
    return load_settings(flags, None, used=_SECTIONS)


def _log_level() -> str:
    """The engine logs what this process would."""
    level = logging.getLogger("distllm").getEffectiveLevel()
    names = ("DEBUG", "INFO", "WARNING", "ERROR")
    return next((name for name in names if level <= logging.getLevelNamesMapping()[name]), "ERROR")


def _shut_down(thread: LoopThread, engine: EngineClient) -> None:
    if not thread.is_here:
        return
    thread.run(engine.stop())
    thread.close()
