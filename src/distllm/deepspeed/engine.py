"""InferenceEngine: a model that runs on ranks of its own."""

import logging
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distllm.deepspeed.availability import is_deepspeed_available
from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.starting import start_llm
from distllm.deepspeed.text_generator import EngineGenerator
from distllm.engine.hub import resolve
from distllm.engine.interface import ExecutorInfo
from distllm.server.llm import LLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from distllm.deepspeed.source import ModelDirectory

logger = logging.getLogger("distllm.deepspeed")


class InferenceEngine(EngineGenerator):
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

        `model` is a checkpoint directory, a name in the local Hugging Face cache, or a decoder of transformers in
        memory, whose weights move to memory that the ranks share: there is no second copy of them in this process.
        With `release_model` they are let go of once the ranks have theirs, and the model is left on the meta
        device; an engine that dies then is not started anew. `tokenizer` is any of transformers'; None takes that
        which lies beside the model's files.

        Raises InvalidOption, OutOfMemory, or what LLM raises, each in one line.
        """
        if config.tensor_parallel_size > 1 and not (available := is_deepspeed_available()):
            raise InvalidOption("tensor_parallel_size", f"above 1 needs DeepSpeed: {available.reason}")
        started_s = time.monotonic()
        self.module = model
        self.config = config
        self.tokenizer = tokenizer
        path, source = _find(model, tokenizer, config)
        try:
            self.llm = start_llm(path, config)
        except BaseException:
            _close(source, None)
            raise
        self._closing = weakref.finalize(self, _close, source, self.llm)
        if release_model and source is not None:
            source.release()
        _log_start(self.llm.info, time.monotonic() - started_s)

    def close(self) -> None:
        """End the ranks. Does nothing the second time."""
        self._closing()

    @property
    def info(self) -> ExecutorInfo:
        """What the engine turned out to be: device, number type, kernels, ranks, context."""
        return self.llm.info

    def _running(self) -> LLM:
        return self.llm


def _find(
    model: "PreTrainedModel | str | Path", tokenizer: Any, config: DeepSpeedConfig
) -> "tuple[Path, ModelDirectory | None]":
    """The directory to load from, and what has to be closed with the engine where it was made for a model."""
    if isinstance(model, str | Path) and tokenizer is None and config.checkpoint_dict is None:
        return resolve(str(model)), None
    from distllm.deepspeed.source import ModelDirectory

    source = ModelDirectory.open(model, tokenizer, config)
    return source.path, source


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
