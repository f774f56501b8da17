"""ModelInference: a model by its name alone, both as transformers' and as an engine."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.engine import InferenceEngine
from distllm.deepspeed.text_generator import EngineGenerator
from distllm.engine.hub import resolve
from distllm.server.llm import LLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelInference(EngineGenerator):
    """The model of `model_id`: a checkpoint directory, or a name in the local Hugging Face cache.

    `model` and `tokenizer` are transformers' own, loaded when they are first asked for. `generate` and `stream` run
    on an engine, of one rank, that is started when it is first needed.
    """

    def __init__(self, model_id: str | Path) -> None:
        """Raises ModelNotFound."""
        self.model_id = str(model_id)
        self.path = resolve(self.model_id)
        self._engine: InferenceEngine | None = None

    @cached_property
    def model(self) -> "PreTrainedModel":
        """As AutoModelForCausalLM loads it, in the number type in which it is stored."""
        from transformers import AutoModelForCausalLM, PreTrainedModel

        model = AutoModelForCausalLM.from_pretrained(self.path, dtype="auto", local_files_only=True)
        assert isinstance(model, PreTrainedModel)
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """As AutoTokenizer loads it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path, local_files_only=True)

    def close(self) -> None:
        """End the engine, if it was started; the next call of `generate` starts another."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _running(self) -> LLM:
        if self._engine is None:
            self._engine = InferenceEngine(self.path, DeepSpeedConfig())
        return self._engine.llm
