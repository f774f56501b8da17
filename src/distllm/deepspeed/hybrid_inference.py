"""HybridInference: one name for a model that runs on the ranks of this machine, and on several machines."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.engine import InferenceEngine
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.text_generator import TextGenerator
from distllm.server.llm import LLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HybridInference(TextGenerator):
    """A model on this machine: `generate` and `stream` as InferenceEngine has them."""

    def __init__(
        self,
        model: "PreTrainedModel | str | Path | None" = None,
        tokenizer: Any = None,
        coordinator_client: object = None,
        model_id: str | Path | None = None,
        tensor_parallel_size: int = 1,
        use_deepspeed: bool = True,
        use_quantization: bool | None = None,
        quantization_config: Mapping[str, Any] | None = None,
        dtype: Any = "auto",
    ) -> None:
        """Start the engine of `model`, or where there is none, of `model_id`, a path or a name.

        With `use_deepspeed` the model is divided over `tensor_parallel_size` ranks; without it runs on one. Weights
        are quantized where `use_quantization` is True, or `quantization_config` is given. `coordinator_client` is
        for models that span machines, which this version does not run. Raises InvalidOption, and what
        InferenceEngine raises.
        """
        if coordinator_client is not None:
            raise InvalidOption(
                "coordinator_client", "joins several machines, and models run on one here: leave it out"
            )
        chosen = model_id if model is None else model
        if chosen is None:
            raise InvalidOption("model", "is missing: give model, or model_id")
        if not use_deepspeed and tensor_parallel_size != 1:
            raise InvalidOption("tensor_parallel_size", "above 1 needs use_deepspeed=True")
        config = DeepSpeedConfig(
            tensor_parallel_size,
            dtype,
            use_quantization=use_quantization,
            quantization_config=quantization_config,
        )
        self.model_id = None if model_id is None else str(model_id)
        self._engine = InferenceEngine(chosen, config, tokenizer)

    def close(self) -> None:
        """End the engine and its ranks. Does nothing the second time."""
        self._engine.close()

    def _running(self) -> LLM:
        return self._engine.llm
