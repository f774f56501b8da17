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
    """Continues texts. Close it, or use it as a context manager."""

    @abstractmethod
    def close(self) -> None:
        """End what runs. Does nothing the second time."""

    @abstractmethod
    def _answers(self, texts: list[str], options: GenerationOptions) -> list[str]:
        """What follows each of them."""

    @abstractmethod
    def _pieces(self, text: str, options: GenerationOptions) -> Iterator[str]:
        """What follows a text, in pieces. Raises what is wrong with it before the first is asked for."""

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
        texts = check_prompts(prompts)
        answers = self._answers(texts, options)
        if options.get("return_full_text"):
            answers = [text + answer for text, answer in zip(texts, answers, strict=True)]
        return answers[0] if isinstance(prompts, str) else answers

    def stream(self, prompt: str, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """As `generate`, one text in pieces as they come. Leaving the iterator ends the request."""
        if not isinstance(prompt, str):
            raise InvalidOption("prompt", "must be a text: start one stream for each")
        pieces = self._pieces(prompt, options)
        return _after(prompt, pieces) if options.get("return_full_text") else pieces


class EngineGenerator(TextGenerator):
    """Continues texts with the engine of `_running`, which `close` ends with its ranks."""

    @abstractmethod
    def _running(self) -> LLM:
        """The engine, started if it was not. Raises what keeps it from starting."""

    def _answers(self, texts: list[str], options: GenerationOptions) -> list[str]:
        llm = self._running()
        params = sampling_params(options, llm.default_params)
        with _option_names():
            results = llm.generate(texts, params, stop=stop_strings(options), use_tqdm=False)
        for result in results:
            if (error := result.completions[0].error) is not None:
                raise GenerationFailed(error)
        return [result.text for result in results]

    def _pieces(self, text: str, options: GenerationOptions) -> Iterator[str]:
        llm = self._running()
        params = sampling_params(options, llm.default_params)
        with _option_names():
            return llm.stream(text, params, stop=stop_strings(options))


def check_prompts(prompts: object) -> list[str]:
    """Texts as they were given, one as a list of one. Raises InvalidOption."""
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InvalidOption("prompts", "must be a text or a list of texts")
    return list(texts)


@contextmanager
def _option_names() -> Iterator[None]:
    """What is said of a prompt's length names the options of `generate`."""
    try:
        yield
    except ContextLengthExceeded as error:
        raise ContextLengthExceeded(in_our_names(str(error)), in_our_names(error.param or "prompts")) from None


def _after(prompt: str, pieces: Iterator[str]) -> Iterator[str]:
    yield prompt
    yield from pieces
