"""DistributedLLM: the OpenAI-compatible inference server for whatever hardware you have.

`from distllm import LLM, SamplingParams` runs offline batches, `convert_checkpoint_to_deepspeed` writes one file a
rank, and what `distllm.deepspeed` holds is here as well; importing the package alone loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from distllm import deepspeed

if TYPE_CHECKING:
    from distllm.deepspeed import (
        Availability,
        CoordinatorClient,
        DeepSpeedConfig,
        HybridInference,
        InferenceEngine,
        InvalidOption,
        ModelInference,
        OutOfMemory,
        ShardedConfig,
        ShardedForCausalLM,
        ShardedTransformerBlock,
        init_inference,
        is_deepspeed_available,
        optimize_with_deepspeed,
    )
    from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
    from distllm.engine.sampling_params import SamplingParams
    from distllm.server.llm import LLM

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Availability",
    "CoordinatorClient",
    "DeepSpeedConfig",
    "HybridInference",
    "InferenceEngine",
    "InvalidOption",
    "ModelInference",
    "OutOfMemory",
    "SamplingParams",
    "ShardedConfig",
    "ShardedForCausalLM",
    "ShardedTransformerBlock",
    "convert_checkpoint_to_deepspeed",
    "init_inference",
    "is_deepspeed_available",
    "optimize_with_deepspeed",
]


def __getattr__(name: str) -> Any:
    match name:
        case "LLM":
            from distllm.server.llm import LLM

            return LLM
        case "SamplingParams":
            from distllm.engine.sampling_params import SamplingParams

            return SamplingParams
        case "convert_checkpoint_to_deepspeed":
            return import_module("distllm.engine.conversion.convert").convert_checkpoint_to_deepspeed
    if name in deepspeed.__all__:
        return getattr(deepspeed, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
