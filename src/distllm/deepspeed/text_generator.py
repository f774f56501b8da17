"""Text in, text out: what every object of this package that runs a model has in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, Unpack, overload

from distllm.deepspeed.generation_options import GenerationOptions, in_our_names, sampling_params, stop_strings
from distllm.deepspeed.refusal import InvalidOption
from distllm.server.errors import ContextLengthExceeded, GenerationFailed
from distllm.server.llm import LLM


class TextGenerator(ABC):
    """Continues texts with the engine of `_running`. Close it, or use it as a context manager."""

    @abstractmethod
    def _running(self) -> LLM:
        """The engine, started if it was not. Raises what keeps it from starting."""

    @abstractmethod
    def close(self) -> None:
        """End the engine and its ranks. Does nothing the second time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @overload
    def generate(self, prompts: str, **options: Unpack[GenerationOptions]) -> str: ...

    @overload
    def generate(self, prompts: list[str], **options: Unpack[GenerationOptions]) -> list[str]: ...

    def generate(self, prompts: str | list[str], **options: Unpack[GenerationOptions]) -> str | list[str]:
        """Continue a text, or each of a list of texts: a text gives a text, a list gives a list in its order.

        Raises InvalidOption for a wrong option and InvalidRequest for a wrong prompt, before anything runs;
        GenerationFailed or EngineUnavailable where the engine could not go on.
        """
        texts = _check_prompts(prompts)
        llm = self._running()
        params = sampling_params(options, llm.default_params)
        with _option_names():
            results = llm.generate(texts, params, stop=stop_strings(options), use_tqdm=False)
        for result in results:
            if (error := result.completions[0].error) is not None:
                raise GenerationFailed(error)
        starts = texts if options.get("return_full_text") else [""] * len(texts)
        answers = [start + result.text for start, result in zip(starts, results, strict=True)]
        return answers[0] if isinstance(prompts, str) else answers

    def stream(self, prompt: str, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """As `generate`, one text in pieces as they come. Leaving the iterator ends the request."""
        if not isinstance(prompt, str):
            raise InvalidOption("prompt", "must be a text: start one stream for each")
        llm = self._running()
        params = sampling_params(options, llm.default_params)
        with _option_names():
            pieces = llm.stream(prompt, params, stop=stop_strings(options))
        return _after(prompt, pieces) if options.get("return_full_text") else pieces


@contextmanager
def _option_names() -> Iterator[None]:
    """What is said of a prompt's length names the options of `generate`."""
    try:
        yield
    except ContextLengthExceeded as error:
        raise ContextLengthExceeded(in_our_names(str(error)), in_our_names(error.param or "prompts")) from None


def _check_prompts(prompts: object) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InvalidOption("prompts", "must be a text or a list of texts")
    return list(texts)


def _after(prompt: str, pieces: Iterator[str]) -> Iterator[str]:
    yield prompt
    yield from pieces
