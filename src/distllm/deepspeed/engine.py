"""InferenceEngine: text in, text out, from a model that runs on ranks of its own."""

import logging
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, cast

from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.generation_options import GenerationOptions, sampling_params, stop_strings
from distllm.deepspeed.number_type import computed_dtype
from distllm.deepspeed.refusal import InvalidOption
from distllm.engine.interface import ExecutorInfo
from distllm.server.errors import GenerationFailed
from distllm.server.llm import LLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from distllm.deepspeed.source import ModelDirectory

logger = logging.getLogger("distllm.deepspeed")

Prompts = TypeVar("Prompts", str, list[str])
Model = "PreTrainedModel | str | Path"


class InferenceEngine:
    """A model that runs on `config.tensor_parallel_size` ranks. Close it, or use it as a context manager.

    What is not closed is closed at exit; a process that is killed leaves nothing behind either. `module` is the
    model as it was given, and stays usable. `config` is how it runs.
    """

    def __init__(
        self,
        model: "PreTrainedModel | str | Path",
        config: DeepSpeedConfig,
        tokenizer: Any = None,
        *,
        release_model: bool = False,
    ) -> None:
        """Start the ranks and load the model.

        `model` is a checkpoint directory, a name in the local Hugging Face cache, or a transformers decoder in
        memory, whose weights move to memory that the ranks share: there is no second copy of them in this process.
        With `release_model` they are let go of once the ranks have theirs, and the model is left on the meta device;
        an engine that dies then is not started anew. `tokenizer` is any of transformers'; None takes the one that
        lies beside the model's files.

        Raises InvalidOption, OutOfMemory, or what LLM raises, each in one line.
        """
        started_s = time.monotonic()
        self.module = model
        self.config = config
        self.tokenizer = tokenizer
        self._source = _open_source(model, tokenizer, config)
        self._closing = weakref.finalize(self, _close, self._source, None)
        try:
            self._llm = start_llm(model if self._source is None else self._source.path, config)
            self._closing.detach()
            self._closing = weakref.finalize(self, _close, self._source, self._llm)
            if release_model and self._source is not None:
                self._source.release()
        except BaseException:
            self.close()
            raise
        _log_start(self._llm.info, time.monotonic() - started_s)

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
        """End the ranks. Does nothing the second time."""
        self._closing()

    @property
    def info(self) -> ExecutorInfo:
        """What the engine turned out to be: device, number type, kernels, ranks, context."""
        return self._llm.info

    def generate(self, prompts: Prompts, **options: Unpack[GenerationOptions]) -> Prompts:
        """Continue a text, or each of a list of texts: a text gives a text, a list gives a list in its order.

        Raises InvalidOption for a wrong option, InvalidRequest for a wrong prompt, before anything runs;
        GenerationFailed or EngineUnavailable where the engine could not go on.
        """
        texts = _check_prompts(prompts)
        params = sampling_params(options, self._llm.default_params)
        results = self._llm.generate(texts, params, stop=stop_strings(options), use_tqdm=False)
        for result in results:
            if (error := result.completions[0].error) is not None:
                raise GenerationFailed(error)
        starts = texts if options.get("return_full_text") else [""] * len(texts)
        answers = [start + result.text for start, result in zip(starts, results, strict=True)]
        return cast("Prompts", answers[0] if isinstance(prompts, str) else answers)

    def stream(self, prompt: str, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """As `generate`, one text in pieces as they come. Leaving the iterator ends the request."""
        if not isinstance(prompt, str):
            raise InvalidOption("prompt", "must be a text: start one stream for each")
        params = sampling_params(options, self._llm.default_params)
        pieces = self._llm.stream(prompt, params, stop=stop_strings(options))
        return _after(prompt, pieces) if options.get("return_full_text") else pieces


def start_llm(model: "str | Path", config: DeepSpeedConfig) -> LLM:
    """The engine of a checkpoint directory or name, as `config` says."""
    return LLM(str(model), injection_policy=config.injection_policy, **_llm_options(config))


def _llm_options(config: DeepSpeedConfig) -> Mapping[str, Any]:
    """`config` under the names of the server's settings."""
    quantization = config.quantization
    options: dict[str, Any] = {
        "dtype": computed_dtype(config.dtype, _device_type()),
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_model_len": config.max_out_tokens,
        "attention_backend": "auto" if config.replace_with_kernel_inject else "reference",
    }
    if quantization is not None:
        options |= {
            "quantization": f"int{quantization.bits}",
            "group_size": quantization.group_size,
            "symmetric": quantization.symmetric,
            "dynamic_activations": quantization.dynamic_activations,
            "mlp_extra_grouping": quantization.mlp_extra_grouping,
        }
    return options


def _device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _open_source(
    model: "PreTrainedModel | str | Path", tokenizer: Any, config: DeepSpeedConfig
) -> "ModelDirectory | None":
    """None for a model that has a directory of its own."""
    if isinstance(model, str | Path):
        if tokenizer is not None or config.checkpoint_dict is not None:
            logger.debug("%s is read with the tokenizer and the weights of its own directory", model)
        return None
    from distllm.deepspeed.source import ModelDirectory

    return ModelDirectory(model, tokenizer)


def _check_prompts(prompts: object) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InvalidOption("prompts", "must be a text or a list of texts")
    return list(texts)


def _after(prompt: str, pieces: Iterator[str]) -> Iterator[str]:
    yield prompt
    yield from pieces


def _close(source: "ModelDirectory | None", llm: LLM | None) -> None:
    if llm is not None:
        llm.close()
    if source is not None:
        source.close()


def _log_start(info: ExecutorInfo, elapsed_s: float) -> None:
    logger.debug(
        "ready after %.2f s: %s in %s on %s, %d ranks, %s, %d tokens of context",
        elapsed_s,
        info.model_type,
        info.dtype,
        info.device,
        info.num_ranks,
        info.kernels,
        info.max_model_len,
    )
